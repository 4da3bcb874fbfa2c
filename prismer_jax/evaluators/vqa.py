"""Questions: answered freely or by choice from a list, with the official accuracy overall and by question type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from prismer_jax import decode, registry
from prismer_jax.evaluators.common import Record
from prismer_jax.evaluators.text import TextEvaluator
from prismer_jax.scores.vqa import score_answers

METHODS = {**decode.METHODS, "rank": "prismer_jax.evaluators.ranking:Ranking"}


class VQAEvaluator(TextEvaluator):
    """The official VQA accuracy in percent (`scores.vqa.accuracy`).

    Yields `accuracy`, `accuracy_blank` of the model that sees a blank image, `accuracy_most_frequent` of the most
    frequent training answer, and each of them by question type and, where examples say it, by answer type:
    `accuracy/<type>`, `accuracy_blank/<type>` ... `predictions` is what the VQA servers take for test-dev and test-std,
    [{"question_id", "answer"}] with every question once; with `predict_only` (a test set without answers) it is all
    there is.

    The official checkpoints' numbers are those of method='rank' (with the official answer list and k=16) or of
    method='beam', length_penalty=-1, min_new=2, max_new=10; both with style='reference' and padding='reference'.

    Args:
      method: of `decode.METHODS` to generate answers, or 'rank' to choose among `answers`.
      answers: for 'rank': the answers, or a JSON file with a list, or a number: the most frequent training ones.
      options: of `text.TextEvaluator`, and settings of `decode.generate` and of the method, or of
        `decode.ranking`.

    Raises:
      UserError: an unknown method or option, or no answers to choose from; in `run`: two questions have one id, or too
        many no answers.
    """

    id_key, text_key = "question_id", "answer"
    main_score, score_names, is_accuracy = "accuracy", ("accuracy",), True
    choice: Literal["answer", "class"] = "answer"

    def __init__(
        self, *, method: str = "greedy", answers: Sequence[str] | str | int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.method, function = method, registry.imported("method", method, METHODS)
        if method == "rank":
            self.ranking = function(self, answers)
            return
        self.check_settings(function, decode.generate, max_new=10)

    def say(self, variables: Any, batch: Mapping[str, Any]) -> list[str]:
        if self.method != "rank":
            return self.generate(variables, batch, self.method, self.texts.answer_said)
        return self.ranking.say(variables, batch)

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        return example.get("answers") or ()

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        return {**super().about(example, index), "answer_type": str(example.get("answer_type") or "")}

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        yield from score_answers(records, self.most_frequent(records))
