"""Results of evaluations side by side: what differs, by how much, and whether by more than chance.

    python -m prismer_jax.evaluate --compare RUN_A RUN_B [...] --output DIR

The first run is the base. Intervals are by a paired bootstrap (Efron and Tibshirani 1993): photos are drawn again and
again with replacement, the same for all runs, and the difference is computed anew; all questions of a photo come with
it. Of CIDEr-D the document frequencies stay those of the whole set. No jax is needed.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.report import comparison
from prismer_jax.scores import bootstrap

SHOWN = 8  # samples in which a run is better than the base, and as many in which it is worse


@dataclass
class Run:
    """What `python -m prismer_jax.evaluate` left in a folder."""

    name: str
    folder: pathlib.Path
    record: Mapping[str, Any]  # metrics.json

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.record["metrics"]

    def samples(self, evaluator: str) -> list[dict[str, Any]]:
        """Returns the samples of an evaluator, in the order of the data set.

        Raises:
          UserError: the file is not there, or damaged.
        """
        file = self.folder / "samples" / f"{evaluator}.jsonl"
        samples: list[dict[str, Any]] = []
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    samples.append(json.loads(line))
        except FileNotFoundError:
            raise UserError(f"{file}: does not exist. Evaluate again.") from None
        except ValueError:
            raise UserError(f"{file}: line {len(samples) + 1} is damaged. Evaluate again.") from None
        if len(samples) != (count := self.record["evaluators"][evaluator]["samples"]):
            raise UserError(f"{file}: holds {len(samples)} samples instead of {count}. Evaluate again.")
        return samples


def results_of(checkpoint: pathlib.Path) -> pathlib.Path:
    """Returns where a checkpoint's results lie: in it, but beside a step or a run's export, which training deletes."""
    if checkpoint.name.isdigit() or checkpoint.name == "export":
        return checkpoint.with_name(f"{checkpoint.name}_evaluation")
    return checkpoint / "evaluation"


def read(folder: pathlib.Path) -> Run:
    """Opens the results in a folder, or those of the checkpoint that it is.

    Raises:
      UserError: there are none, or they are damaged.
    """
    for place in (folder, results_of(folder), folder / "evaluation"):
        try:
            record = json.loads((place / "metrics.json").read_text())
        except FileNotFoundError:
            continue
        except ValueError:
            raise UserError(f"{place / 'metrics.json'}: is damaged. Evaluate again.") from None
        if isinstance(record, dict) and {"metrics", "evaluators", "checkpoint"} <= record.keys():
            return Run(str(folder), place, record)
    what = (
        "no such folder"
        if not folder.exists()
        else "holds no results of an evaluation (metrics.json; a training's has no samples)"
    )
    raise UserError(f"{folder}: {what}. Make them: python -m prismer_jax.evaluate --config ... --checkpoint {folder}.")


def compare(folders: Sequence[pathlib.Path], output: pathlib.Path) -> dict[str, Any]:
    """Compares results and writes OUTPUT/comparison.json and OUTPUT/report.html; prints and returns the table.

    Returns:
      {"runs": [folder, ...], "metrics": {name: {"values": [...], "differences": [...], "intervals": [[low, high] or
      None, ...]}}}, differences and intervals of each run but the first to the first.

    Raises:
      UserError: fewer than two runs, one without results, no evaluator or metric in common, or results on different
        data sets.
    """
    table, runs, samples = tabulate(folders)
    output.mkdir(parents=True, exist_ok=True)
    comparison.write(output / "report.html", [run.record for run in runs], samples, table, SHOWN)
    storage.write_json(output / "comparison.json", table)
    show(table)
    print(f"Page: {output / 'report.html'}   table: {output / 'comparison.json'}")
    return table


def tabulate(folders: Sequence[pathlib.Path]) -> tuple[dict[str, Any], list[Run], dict[str, list[list[dict]]]]:
    """Returns the table of `compare`, the runs, and each evaluator's samples by run; raises as that does."""
    if len(folders) < 2:
        raise UserError("--compare needs at least two results.")
    runs = [read(folder) for folder in folders]
    common = [name for name in runs[0].record["evaluators"] if all(name in run.record["evaluators"] for run in runs)]
    if not common:
        listed = "; ".join(f"{run.name} has {', '.join(run.record['evaluators'])}" for run in runs)
        raise UserError(f"The results have no evaluator in common: {listed}.")
    samples = {name: [run.samples(name) for run in runs] for name in common}
    for name in common:
        for run, theirs in zip(runs[1:], samples[name][1:], strict=True):
            check_same_data(name, runs[0], samples[name][0], run, theirs)
    names = [m for m in runs[0].metrics if m.split("/")[0] in common and all(m in run.metrics for run in runs)]
    if not names:  # of predictions alone
        raise UserError(f"{', '.join(run.name for run in runs)}: no metric in common. Evaluate without --predict-only.")
    metrics = {
        name: {
            "values": (values := [run.metrics[name] for run in runs]),
            "differences": [value - values[0] for value in values[1:]],
            "intervals": [None for _ in runs[1:]],
        }
        for name in names
    }
    for name in common:
        for place, theirs in enumerate(samples[name][1:]):
            for metric, (mean, interval) in intervals(samples[name][0], theirs).items():
                row = metrics.get(f"{name}/{metric}")
                # CIDEr-D of a part of the set is no mean of scores, as its document frequencies are of that part.
                if row is not None and math.isclose(row["differences"][place], mean, rel_tol=1e-6, abs_tol=1e-6):
                    row["intervals"][place] = interval
    table = {
        "runs": [run.name for run in runs],
        "level": bootstrap.LEVEL,
        "resamples": bootstrap.RESAMPLES,
        "seed": bootstrap.SEED,
        "metrics": metrics,
    }
    return table, runs, samples


def check_same_data(name: str, a: Run, ours: Sequence[Mapping], b: Run, theirs: Sequence[Mapping]) -> None:
    """Raises a UserError unless both have the same ids, questions and references."""
    if [s["id"] for s in ours] != [s["id"] for s in theirs]:
        ids, others = {s["id"] for s in ours}, {s["id"] for s in theirs}
        raise UserError(
            f"{name}: {a.name} and {b.name} are of different data sets: {len(ids & others)} ids in common, of "
            f"{len(ids)} and {len(others)}. Evaluate both on the same."
        )
    for one, two in zip(ours, theirs, strict=True):
        for key in ("question", "references"):
            if one.get(key) != two.get(key):
                raise UserError(
                    f"{name}: {a.name} and {b.name} are of different data sets: the {key} of {one['id']!r} differ. "
                    "Evaluate both on the same."
                )


def intervals(
    base: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], seed: int = bootstrap.SEED
) -> dict[str, tuple[float, list[float]]]:
    """Returns the bootstrap intervals of the differences of all metrics that are means over samples.

    Args:
      base, other: samples of the two runs, in the same order, with `photo`, `type` and `scores`.
      seed: of the draws.

    Returns:
      {metric, or metric/type: (mean, [low, high])} of the differences other - base; the mean of the population lies
      between the ends with bootstrap.LEVEL percent confidence.
    """
    scored = [(one, two) for one, two in zip(base, other, strict=True) if "scores" in one and "scores" in two]
    if not scored:
        return {}
    metrics = [m for m in scored[0][0]["scores"] if all(m in sample["scores"] for pair in scored for sample in pair)]
    types = sorted({one.get("type") or "" for one, _ in scored} | {""})
    differences = np.array([[[two["scores"][m] - one["scores"][m] for m in metrics]] for one, two in scored])
    counted = np.array([[kind in ("", one.get("type")) for kind in types] for one, _ in scored], float)
    means, ends = bootstrap.intervals(differences, counted, [one["photo"] for one, _ in scored], seed=seed)
    return {
        f"{metric}/{kind}".rstrip("/"): (float(means[t, m]), ends[:, t, m].tolist())
        for t, kind in enumerate(types)
        for m, metric in enumerate(metrics)
    }


def show(table: Mapping[str, Any]) -> None:
    """Prints a line a metric: the values, and each difference to the first with its interval."""
    width = max(map(len, table["metrics"]))
    for letter, run in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", table["runs"], strict=False):
        print(f"{letter}: {run}")
    print(f"values; differences to A, with {table['level']} % intervals where samples have scores of their own")
    for name, row in table["metrics"].items():
        values = "  ".join(f"{value:9.4f}" for value in row["values"])
        changes = []
        for difference, interval in zip(row["differences"], row["intervals"], strict=True):
            ends = "" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]"
            changes.append(f"{difference:+.4f}{ends}")
        print(f"{name:<{width}}  {values}  {'  '.join(changes)}")
