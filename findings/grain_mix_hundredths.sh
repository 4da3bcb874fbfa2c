#!/usr/bin/env bash
# Grain's mix takes its weights in hundredths of the smallest, rounded down: sets of 1,000,000 and 1,009,900 records that
# are mixed by their sizes give one record each in turn, and of 5 and 9.99 the second comes 199 times for every 100 of
# the first. The larger set is always the one that is cut short, by up to one hundredth of the smallest weight. Exact
# numbers, and so a mixture that goes once through all of its sets together, take weights whose ratios are hundredths.
# docs/data.md says so of this project's mixtures.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
cat > "$folder/mix.py" <<'P'
import importlib.metadata
import sys

import grain.python as grain

print("grain", importlib.metadata.version("grain"))
TAKEN = 20_100
changed = False
for weights, expected in (((1_000_000, 1_009_900), 10_050), ((5, 9.99), 13_378), ((5, 9.95), 13_377.5)):
    parts = [grain.MapDataset.source([name]).repeat() for name in "ab"]
    mixed = grain.MapDataset.mix(parts, weights)
    second = sum(mixed[place] == "b" for place in range(TAKEN))
    share = TAKEN * weights[1] / sum(weights)
    print(f"weights {weights}: of {TAKEN} records {second} are of the second set, by its weight {share:.1f}")
    changed |= abs(second - expected) > 1
sys.exit("The behaviour has changed." if changed else 0)
P
cd "$folder"
venv/bin/python mix.py
