"""Evaluators by type: made once, run on any variables, they yield metrics and keep predictions and samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prismer_jax import config, registry
from prismer_jax.evaluators.common import Evaluator, Journal

# Type -> module and class; imported when an evaluator of it is asked for.
EVALUATORS = {
    "answers": "prismer_jax.evaluators.answers:AnswersEvaluator",
    "caption": "prismer_jax.evaluators.caption:CaptionEvaluator",
    "choice": "prismer_jax.evaluators.choice:ChoiceEvaluator",
    "classification": "prismer_jax.evaluators.classification:ClassificationEvaluator",
    "detection": "prismer_jax.evaluators.objects:DetectionEvaluator",
    "fidelity": "prismer_jax.evaluators.fidelity:FidelityEvaluator",
    "loss": "prismer_jax.evaluators.loss:LossEvaluator",
    "own_photo": "prismer_jax.evaluators.own_photo:OwnPhotoEvaluator",
    "perplexity": "prismer_jax.evaluators.perplexity:PerplexityEvaluator",
    "refcoco": "prismer_jax.evaluators.objects:RefCOCOEvaluator",
    "retrieval": "prismer_jax.evaluators.retrieval:RetrievalEvaluator",
    "vqa": "prismer_jax.evaluators.vqa:VQAEvaluator",
}


def build(type: str, *, where: str = "", **options: Any) -> Evaluator:
    """Makes the evaluator of that type; `options` go to its class, and messages begin with `where`, or the type.

    Raises:
      UserError: an unknown type or option, one that is missing, or of another type than its class says.
    """
    cls = registry.imported("evaluator", type, EVALUATORS)
    return config.call(cls, {**options, "where": where or type}, where or type)


def run(
    evaluators: Mapping[str, Evaluator], variables: Any, journals: Mapping[str, Journal] | None = None
) -> dict[str, float]:
    """Returns {'evaluator/metric': value} of {name: evaluator} on a model's variables.

    Of `journals`, {name: journal}, each keeps its evaluator's predictions as they come, to go on from.
    """
    return {
        f"{name}/{metric}": float(value)
        for name, evaluator in evaluators.items()
        for metric, value in evaluator.run(variables, (journals or {}).get(name))
    }
