"""What an evaluation leaves behind in a folder: metrics, predictions in the official formats, a report."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from prismer_jax import config, report


def write(
    folder: pathlib.Path,
    evaluators: Mapping[str, Any],
    scores: Mapping[str, float],
    cfg: config.Section,
    samples: int = 12,
) -> None:
    """Writes predictions, the report of a training run and, last, metrics.json, {'evaluator/metric': value}.

    Args:
      folder: the workdir.
      evaluators: {name: evaluator}, which have run.
      scores: what they yielded.
      cfg: the config, which the report shows.
      samples: how many of all evaluators the report shows.
    """
    write_predictions(folder, evaluators)
    shown = [evaluator for evaluator in evaluators.values() if evaluator.predictions]
    panels = [sample for evaluator in shown for sample in evaluator.samples(max(1, samples // len(shown)))]
    report.write_report(folder, panels, scores, config.to_json(cfg))
    config.write(folder / "metrics.json", json.dumps(dict(scores), indent=2))


def write_evaluation(
    folder: pathlib.Path,
    evaluators: Mapping[str, Any],
    scores: Mapping[str, float],
    record: Mapping[str, Any],
    samples: int = 12,
) -> None:
    """Writes what `python -m prismer_jax.evaluate` leaves: as `write`, and samples/NAME.jsonl for comparisons.

    Args:
      folder: created if need be.
      evaluators, scores: as in `write`.
      record: what was evaluated, which metrics.json holds beside the metrics.
      samples: how many of the best, of the worst and of all samples the report shows for each evaluator.
    """
    record = {"metrics": dict(scores), **record, "date": _now(), **config.provenance()}
    write_predictions(folder, evaluators)
    (folder / "samples").mkdir(exist_ok=True)
    for name, evaluator in evaluators.items():
        file = folder / "samples" / f"{name}.jsonl"
        temporary = file.with_suffix(".tmp")
        with temporary.open("w") as lines:
            lines.writelines(json.dumps(sample) + "\n" for sample in evaluator.records)
        os.replace(temporary, file)
    report.write_evaluation(folder / "report.html", evaluators, record, samples)
    config.write(folder / "metrics.json", json.dumps(record, indent=2))


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def write_predictions(folder: pathlib.Path, evaluators: Mapping[str, Any]) -> None:
    """Writes predictions/NAME.json, in the official format of what an evaluator predicts."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    for name, evaluator in evaluators.items():
        if evaluator.predictions:
            config.write(folder / "predictions" / f"{name}.json", json.dumps(evaluator.predictions))


def show(scores: Mapping[str, float]) -> None:
    """Prints one line a metric."""
    width = max(map(len, scores), default=0)
    for name, value in scores.items():
        print(f"{name:<{width}}  {value:.4f}")
