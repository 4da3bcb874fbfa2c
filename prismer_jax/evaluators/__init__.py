"""Evaluators by type: made once, run on any variables, they yield metrics and keep predictions and samples."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from prismer_jax.errors import choose
from prismer_jax.evaluators.caption import CaptionEvaluator
from prismer_jax.evaluators.common import Evaluator
from prismer_jax.evaluators.journal import Journal
from prismer_jax.evaluators.loss import LossEvaluator
from prismer_jax.evaluators.vqa import VQAEvaluator

EVALUATORS: dict[str, type[Evaluator]] = {
    "caption": CaptionEvaluator,
    "vqa": VQAEvaluator,
    "loss": LossEvaluator,
}
# Type -> module and class; imported when an evaluator of it is asked for.
FURTHER = {
    "choice": ("prismer_jax.evaluators.choice", "ChoiceEvaluator"),
    "classification": ("prismer_jax.evaluators.classification", "ClassificationEvaluator"),
}


def build(type: str, **options: Any) -> Evaluator:
    """Makes the evaluator of that type; `options` go to its class.

    Raises:
      UserError: an unknown type or option.
    """
    if type in FURTHER:
        module, name = FURTHER[type]
        return getattr(importlib.import_module(module), name)(**options)
    return choose("evaluator", type, {**EVALUATORS, **FURTHER})(**options)


def run(
    evaluators: Mapping[str, Evaluator], variables: Any, journals: Mapping[str, Journal] | None = None
) -> dict[str, float]:
    """Returns {'evaluator/metric': value} of all evaluators on a model's variables.

    Args:
      evaluators: {name: evaluator}.
      variables: the model's.
      journals: {name: where predictions are kept as they come, to go on from}.
    """
    return {
        f"{name}/{metric}": float(value)
        for name, evaluator in evaluators.items()
        for metric, value in evaluator.run(variables, (journals or {}).get(name))
    }
