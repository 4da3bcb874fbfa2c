"""Short answers by one of the scores of scores/answers.py: DocVQA, ChartQA, POPE, MMVP, TallyQA, ScienceQA ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prismer_jax.errors import choose
from prismer_jax.evaluators.common import Record
from prismer_jax.evaluators.vqa import VQAEvaluator
from prismer_jax.scores.answers import SCORES, score_records


class AnswersEvaluator(VQAEvaluator):
    """A score in percent, by what the benchmark counts.

    Yields the score's metric, such as `anls`, its `..._blank` of the model that sees a blank image and its
    `..._most_frequent` of the most frequent training answer, each of them by question type, and what else the score
    says of a set. `predictions` is [{"question_id", "answer"}].

    Args:
      score: of scores.answers.SCORES.
      lower: compare in lower case.
      options: of `VQAEvaluator`.

    Raises:
      UserError: an unknown score or option.
    """

    score_names = ()

    def __init__(self, *, score: str = "exact", lower: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.score, self.lower = choose("score of answers:", score, SCORES), lower
        self.main_score = self.score.name

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        choices = example.get("choices")
        return super().about(example, index) | ({} if choices is None else {"choices": list(choices)})

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        constant = self.most_frequent(records)
        if self.lower:
            constant = constant.lower()
            for record in records:
                record["prediction"] = record["prediction"].lower()
                record["references"] = [text.lower() for text in record["references"]]
                if record.get("blank") is not None:
                    record["blank"] = record["blank"].lower()
                if "choices" in record:
                    record["choices"] = [text.lower() for text in record["choices"]]
        yield from score_records(records, self.score, constant)
