#!/usr/bin/env bash
# What transformers' generate returns is filled up behind a text's end with the padding, by greedy search and by beams,
# unless that is 0, as T5's, FlanT5's, Gemma's and BERT's is: then beams fill up with the end token, also where generate
# is told pad_token_id=0. A text of one word is returned as that word and an end in every further column. Who counts
# what is not padding, for a length, a mean score, or the labels of a student, counts all of these ends. As texts
# nothing differs, since special tokens are skipped there. With any other padding beams are right. Seen with
# transformers 4.57.1 and 5.24.0 and PyTorch 2.13.0. prismer_jax fills up with the tokenizer's padding in every method
# (prismer_jax/decode/beam.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==${TRANSFORMERS:-5.24.0}"
"$folder/venv/bin/python" - <<'P' 2>/dev/null
import sys

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

print("transformers", transformers.__version__, "torch", torch.__version__)
END, WORDS, COLUMNS = 1, 16, 8


def fillers(pad, beams):
    """Returns which tokens stand behind the first end, in all texts of eight small models together."""
    small = dict(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    config = T5Config(**small, pad_token_id=pad, eos_token_id=END, decoder_start_token_id=2)
    found = set()
    for seed in range(8):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_()
        prompts = torch.randint(3, WORDS - 1, (16, 5))
        options = dict(num_beams=beams, do_sample=False, max_new_tokens=COLUMNS, pad_token_id=pad)
        for row in model.generate(prompts, **options).tolist():
            if END in row:
                found |= set(row[row.index(END) + 1 :])
    return found


seen = {}
for pad in (0, WORDS - 1):
    for beams in (1, 3):
        seen[pad, beams] = fillers(pad, beams)
        print(f"padding {pad}, end {END}, {beams} beam(s): behind the first end of a text stand", seen[pad, beams])
if seen != {(0, 1): {0}, (0, 3): {END}, (WORDS - 1, 1): {WORDS - 1}, (WORDS - 1, 3): {WORDS - 1}}:
    sys.exit("The behaviour has changed.")
print("as told: only beams whose padding is 0 fill up with the end")
P
