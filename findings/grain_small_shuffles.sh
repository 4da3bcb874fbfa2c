#!/usr/bin/env bash
# The fewer records Grain shuffles, the longer it takes for each of them: one of a million takes some microseconds, one
# of four takes a few hundred times as many. That is felt where windows are shuffled (in windows of 16 records each
# costs a hundred times as much as in windows of 10,000), in few-shot sets and in tests. A place is permuted among
# 65,536 at the least, and again and again until it falls within the records. Seen with grain 0.2.12 to 0.2.18; times
# are the processor's, of one process, as ratios. prismer_jax shuffles whole data sets so (prismer_jax/input.py): each
# photo of a set of eight costs some milliseconds more than it should, and one of a few thousand nothing to speak of.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys
import time

from grain import MapDataset, experimental

print("grain", importlib.metadata.version("grain"))


def microseconds(dataset, count):
    """Returns the processor's time for one record, the least of three runs over `count` of them."""
    times = []
    for run in range(3):
        start = time.process_time()
        for index in range(run * count, (run + 1) * count):
            dataset[index]
        times.append(1e6 * (time.process_time() - start) / count)
    return min(times)


plain, shuffled, windows = {}, {}, {}
for records in (4, 16, 64, 1024, 65_536, 1_000_000):
    dataset = MapDataset.range(records)
    count = min(200, 3 * records if records < 100 else records)
    plain[records] = microseconds(dataset, count)
    shuffled[records] = microseconds(dataset.shuffle(seed=1), count)
    print(f"{records:9,} records: {plain[records]:8.1f} us for one in order, {shuffled[records]:8.1f} us shuffled")
for window in (16, 10_000):
    dataset = MapDataset.range(1_000_000)
    dataset = experimental.WindowShuffleMapDataset(dataset, window_size=window, seed=1)
    windows[window] = microseconds(dataset, 100)
    print(f"{window:9,} records in a window, of 1,000,000: {windows[window]:8.1f} us for one")
slow = shuffled[4] > 100 * shuffled[65_536] and shuffled[16] > 5 * shuffled[1024] > 10 * plain[1024]
slow &= windows[16] > 10 * windows[10_000] and shuffled[1_000_000] < shuffled[64]
sys.exit(0 if slow else "The behaviour has changed.")
P
