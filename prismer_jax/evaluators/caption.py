"""Captions: generated, scored against the references, beside those of a blank image and the most frequent one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prismer_jax import decode, registry
from prismer_jax.evaluators.common import Record
from prismer_jax.evaluators.text import TextEvaluator
from prismer_jax.scores.caption import FURTHER, SCORES, score_captions


class CaptionEvaluator(TextEvaluator):
    """BLEU-1..4, ROUGE-L and CIDEr-D of generated captions (`caption_metrics`).

    Yields each score, `<score>_blank` of the model's caption of a blank image, and `<score>_most_frequent` of the most
    frequent training caption given to every image. Where examples say their `domain`, as those of NoCaps do, each score
    follows of each domain, `<score>/in-domain` ...: of its images alone, so that CIDEr's document frequencies are those
    of the domain, as they are when a domain's result file is scored by the official tools.

    `predictions` is what COCO's and NoCaps' servers take, [{"image_id", "caption"}]; with `predict_only` (a test set
    without references) it is all there is.

    Args:
      method: of `decode.METHODS`.
      metrics: more scores of the model's captions, 'meteor' and 'spice'; they need Java (scores/jars.py).
      options: of `text.TextEvaluator`, and settings of `decode.generate` and of the method: max_new or max_len,
        min_new or min_len, num_beams ... The pp's prompt is the prefix, which is no part of the prediction.

    Raises:
      UserError: an unknown method, metric or option, or a metric cannot be computed here; in `run`: two examples have
        one id, or too many no references.
    """

    main_score = "cider"

    def __init__(self, *, method: str = "beam", metrics: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.method, self.more = method, tuple(metrics)
        if type(self).metrics is CaptionEvaluator.metrics:  # others' metrics are another's to name
            self.score_names = (*SCORES, *self.more)
        for name in self.more:  # now, and not after all captions are made
            registry.imported("metric", name, FURTHER).check()
        self.check_settings(registry.imported("decoding method", method, decode.METHODS), decode.generate, max_new=20)

    def say(self, variables: Any, batch: Mapping[str, Any]) -> list[str]:
        return self.generate(variables, batch, self.method, self.texts.caption_said)

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        return example.get("captions") or ()

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        return {**super().about(example, index), "type": str(example.get("domain") or "")}

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        yield from score_captions(records, self.most_frequent(records), self.more)
