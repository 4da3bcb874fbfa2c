#!/usr/bin/env bash
# COCO's ROUGE-L of a caption takes the best precision of all references and the best recall of all, be they of
# different ones. So a caption may have 1.0, the score of a perfect match, though no reference is like it: all its words
# are in a long reference, in order, and all words of a short one are in it. Either reference alone gives it 0.68 or
# 0.62. ROUGE itself, by its author's definition, is that of the best reference. Wherever references differ in length,
# as people's do, scores may thus be higher than by a package that keeps to the definition. Seen with pycocoevalcap 1.2.
# prismer_jax gives the same numbers as it, to be compared with published ones (prismer_jax/scores/caption.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps pycocoevalcap==1.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

from pycocoevalcap.rouge.rouge import Rouge

print("pycocoevalcap", importlib.metadata.version("pycocoevalcap"))
CAPTION = "a dog on a beach"
SHORT, LONG = "a dog", "a brown dog runs fast on a sunny beach"
seen = []
for references in ([SHORT], [LONG], [SHORT, LONG], [CAPTION]):
    seen.append(round(float(Rouge().compute_score({0: references}, {0: [CAPTION]})[0]), 2))
    print(f"ROUGE-L of {CAPTION!r} by {references}: {seen[-1]}")
sys.exit(0 if seen == [0.62, 0.68, 1, 1] else "The behaviour has changed.")
P
