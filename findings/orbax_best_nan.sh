#!/usr/bin/env bash
# Orbax's CheckpointManager with best_fn and max_to_keep takes NaN for the best metric that there is, be best_mode "max"
# or "min", and deletes what was best before: of a run that diverges in the middle, every checkpoint with a finite
# metric goes, and the parameters of NaN stay. After one NaN among good evaluations the best of the run is gone, too,
# and what is called the best is only the best of what came later. The checkpoints are sorted by Python, where NaN is
# neither smaller nor larger and so stays where it is: last, where the newest comes in, and where the best is looked
# for. Nothing is said. Seen with orbax-checkpoint 0.12.8. prismer_jax chooses the best itself, by finite metrics alone
# (prismer_jax/checkpoint/steps.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 \
  numpy==2.4.6
cd "$folder" && JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import pathlib
import tempfile

import numpy as np
import orbax.checkpoint as ocp

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("orbax-checkpoint", "jax")))
nan = float("nan")


def kept(metrics, mode, n):
    """Saves a checkpoint for each metric, and returns the metrics of those that are left, and that of the best."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=n, best_fn=lambda metrics: metrics["metric"], best_mode=mode, enable_async_checkpointing=False
    )
    folder = pathlib.Path(tempfile.mkdtemp(dir="."), "run").absolute()
    with ocp.CheckpointManager(folder, options=options) as manager:
        for step, metric in enumerate(metrics):
            args = ocp.args.StandardSave({"parameter": np.ones(2)})
            manager.save(step, args=args, metrics={"metric": metric})
        manager.wait_until_finished()
        return [metrics[step] for step in sorted(manager.all_steps())], metrics[manager.best_step()]


runs = {
    "a loss without NaN": ("min", 2, [0.5, 0.4, 0.6, 0.7, 0.8]),
    "a loss that becomes NaN": ("min", 2, [0.5, 0.4, nan, nan, nan]),
    "a loss with one NaN": ("min", 1, [0.5, 0.4, nan, 0.7, 0.8]),
    "an accuracy without NaN": ("max", 2, [0.5, 0.9, 0.8, 0.7, 0.6]),
    "an accuracy that becomes NaN": ("max", 2, [0.5, 0.9, nan, nan, nan]),
    "an accuracy with one NaN": ("max", 1, [0.5, 0.9, nan, 0.7, 0.6]),
}
seen = {}
for name, (mode, n, metrics) in runs.items():
    seen[name] = left, best = kept(metrics, mode, n)
    print(f"{name}, {metrics}, {n} to keep by the {mode}: {left} are left, the best of them is {best}")
expected = {
    "a loss without NaN": ([0.5, 0.4], 0.4),
    "a loss that becomes NaN": ([nan, nan], nan),
    "a loss with one NaN": ([0.7], 0.7),
    "an accuracy without NaN": ([0.9, 0.8], 0.9),
    "an accuracy that becomes NaN": ([nan, nan], nan),
    "an accuracy with one NaN": ([0.7], 0.7),
}
assert repr(seen) == repr(expected), "The behaviour has changed."
P
