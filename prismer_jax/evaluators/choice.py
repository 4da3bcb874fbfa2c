"""Multiple choice: the letter of the right option, written by the model or ranked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import decode
from prismer_jax.decode.greedy import greedy
from prismer_jax.decode.ranking import rank, rank_answers
from prismer_jax.decode.sampling import sample
from prismer_jax.errors import choose
from prismer_jax.evaluators.common import Journal, Record, local_rows
from prismer_jax.evaluators.text import TextEvaluator
from prismer_jax.pp.choices import choice_tokens
from prismer_jax.scores.choice import LETTERS, first_letter, mentions, score_choices

NEW = 5  # tokens that are written, as in huggingface/nanoVLM's train.py at v0.1


class ChoiceEvaluator(TextEvaluator):
    """The accuracy in percent on questions with lettered options (`datasets.choices`).

    Yields `accuracy`, and what to hold against it: `accuracy_chance` of a guess, `accuracy_blank` of the model that
    sees a blank image, `accuracy_most_frequent` of the most frequent letter; each of them by category too:
    `accuracy/<category>` ... `predictions` is [{"question_id", "answer"}].

    Args:
      method: 'greedy' takes the letter with which the likeliest answer begins; 'rank' the likeliest of the options'
        letters; 'reference' draws five tokens at temperature 1 and counts the right letter anywhere in them
        (`scores.choice.mentions`), as huggingface/nanoVLM does at v0.1, so that its score is random and lenient.
      options: of `text.TextEvaluator`, and settings of `decode.generate` and of the method.

    Raises:
      UserError: an unknown method or option.
    """

    id_key, text_key = "question_id", "answer"
    main_score, is_accuracy = "accuracy", True

    def __init__(self, *, method: str = "greedy", **options: Any) -> None:
        super().__init__(**options)
        functions = {"greedy": greedy, "reference": sample, "rank": rank_answers}
        function, self.method = choose("method of choice:", method, functions), method
        if method == "rank":
            self.check_settings(function, rank)
            self.letter_tokens = jax.device_put(choice_tokens(self.tokenizer, LETTERS, "answer"))
        else:
            self.check_settings(function, decode.generate, max_new=NEW)

    def say(self, variables: Any, batch: Mapping[str, Any]) -> list[str]:
        """Returns what is written, or for 'rank' all letters, the likeliest first."""
        if self.method != "rank":
            method = {"reference": "sample"}.get(self.method, self.method)
            return self.generate(variables, batch, method, self.texts.caption_said)
        settings = {"k": len(LETTERS), "label_smoothing": 0.0, **self.settings}
        _, candidates, scores = rank_answers(self.model, variables, batch, *self.letter_tokens, **settings)
        orders = np.argsort(-local_rows(scores), axis=-1, kind="stable")
        return ["".join(LETTERS[i] for i in row) for row in np.take_along_axis(local_rows(candidates), orders, -1)]

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        return example.get("answers") or ()

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        return {**super().about(example, index), "letters": example["letters"]}

    def is_right(self, said: str, record: Record) -> bool:
        """Returns whether what was said of a question is its right letter."""
        if self.method == "reference":
            return mentions(said, record["references"][0])
        if self.method == "rank":
            return _own_letter(said, record) in record["references"]
        return first_letter(said) in record["references"]

    def finish(self, variables: Any, records: list[Record], earlier: list[Record], journal: Journal | None) -> None:
        super().finish(variables, records, earlier, journal)
        if self.method == "rank":  # of whose letters the likeliest of the question's own is the answer
            for row, record in zip(self.predictions, records, strict=True):
                row[self.text_key] = _own_letter(record["prediction"], record)

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        yield from score_choices(records, self.most_frequent(records), self.is_right)


def _own_letter(ranked: str, record: Record) -> str:
    """Returns the first of ranked letters that is one of a question's; '' if none is."""
    return next((letter for letter in ranked if letter in record["letters"]), "")
