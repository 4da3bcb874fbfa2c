"""What a run leaves behind in its workdir: metrics, predictions in the official formats, a report."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from prismer_jax import config
from prismer_jax.files import storage
from prismer_jax.report import page


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
      samples: how many of all evaluators the report shows, of each one at least; 0 for none.
    """
    write_predictions(folder, evaluators)
    shown = [evaluator for evaluator in evaluators.values() if evaluator.predictions]
    panels = [part for evaluator in shown if samples for part in evaluator.samples(max(1, samples // len(shown)))]
    page.write_report(folder, panels, scores, config.to_json(cfg))
    storage.write_json(folder / "metrics.json", dict(scores))


def write_predictions(folder: pathlib.Path, evaluators: Mapping[str, Any]) -> None:
    """Writes predictions/NAME.json, in the official format of what an evaluator predicts."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    for name, evaluator in evaluators.items():
        if evaluator.predictions:
            storage.write_json(folder / "predictions" / f"{name}.json", evaluator.predictions, indent=None)


def show(scores: Mapping[str, float]) -> None:
    """Prints one line a metric."""
    width = max(map(len, scores), default=0)
    for name, value in scores.items():
        print(f"{name:<{width}}  {value:.4f}")
