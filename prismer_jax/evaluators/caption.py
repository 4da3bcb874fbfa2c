"""Captions: generated, scored against the references, beside those of a blank image and the most frequent one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prismer_jax import decode
from prismer_jax.errors import choose
from prismer_jax.evaluators.common import Record, TextEvaluator
from prismer_jax.evaluators.scores import caption_metrics, caption_scores
from prismer_jax.pp.text import caption_said

__all__ = ["CaptionEvaluator", "caption_metrics"]


class CaptionEvaluator(TextEvaluator):
    """BLEU-1..4, ROUGE-L and CIDEr-D of generated captions (`caption_metrics`).

    Yields each score, `<score>_blank` of the model's caption of a blank image, and `<score>_most_frequent` of the most
    frequent training caption given to every image. `predictions` is in the COCO format [{"image_id", "caption"}];
    without references (a test set) it is all there is.

    Args:
      method: of `decode.METHODS`.
      options: of `common.TextEvaluator`, and settings of `decode.generate` and of the method: max_new or max_len,
        min_new or min_len, num_beams ... The pp's prompt is the prefix, which is no part of the prediction.

    Raises:
      UserError: an unknown method or option; in `run`: two examples have one id, or only some have references.
    """

    main_score = "cider"

    def __init__(self, *, method: str = "beam", **options: Any) -> None:
        super().__init__(**options)
        self.method = method
        self.check_settings(choose("decoding method", method, decode.METHODS), decode.generate)
        if not self.settings.keys() & {"max_len", "max_new"}:
            self.settings["max_new"] = 20

    def say(self, variables: Any, batch: Mapping[str, Any]) -> list[str]:
        return self.generate(variables, batch, self.method, caption_said)

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        return example.get("captions") or ()

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        references = {record["id"]: record["references"] for record in records}
        if not any(references.values()):
            return
        rivals = {"": {record["id"]: record["prediction"] for record in records}}
        if self.with_blank:
            rivals["_blank"] = {record["id"]: record["blank"] for record in records}
        rivals["_most_frequent"] = dict.fromkeys(references, self.most_frequent(records))
        for suffix, captions in rivals.items():
            values, each = caption_scores(captions, references)
            for record in records:
                record.setdefault("scores", {})[f"cider{suffix}"] = each[record["id"]]
            for name, value in values.items():
                yield f"{name}{suffix}", value
