"""Answers by choice: of given texts the one that a model ranks highest after a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from prismer_jax.decode.ranking import rank, rank_answers
from prismer_jax.errors import UserError
from prismer_jax.evaluators.common import local_rows
from prismer_jax.evaluators.text import TextEvaluator
from prismer_jax.pp.choices import choice_tokens, read_choices


class Ranking:
    """What an evaluator ranks, with the settings that it was given for `rank` and `rank_answers`.

    Args:
      evaluator: whose model and tokenizer these are; its `choice` says what the texts are, 'answer' or 'class'.
      answers: the texts, or a JSON file with a list, or a number: so many of the most frequent training answers.

    Raises:
      UserError: there is nothing to choose from, or a setting that ranking does not have, or cannot have.
    """

    def __init__(self, evaluator: TextEvaluator, answers: Sequence[str] | str | int | None) -> None:
        evaluator.check_settings(rank, rank_answers)
        if evaluator.settings.setdefault("k", 16) < 1:
            raise UserError(f"k={evaluator.settings['k']}: must be at least 1, of texts that are ranked as a whole.")
        if isinstance(answers, int) and evaluator.train_source is not None:
            answers = [text for text, _ in evaluator.train_texts().most_common(answers)]
        if not answers or isinstance(answers, int):
            raise UserError("method='rank' needs answers: a list, a JSON file with a list, or a number and train_data.")
        self.choices = read_choices(answers)
        self._model, self._settings = evaluator.model, evaluator.settings
        # int32 [a, l] and bool [a, l]: ids, and which of them are no padding.
        tokens = choice_tokens(evaluator.tokenizer, self.choices, evaluator.choice, evaluator.style)
        self._tokens = jax.device_put(tokens)

    def say(self, variables: Any, batch: Mapping[str, Any]) -> list[str]:
        """Returns the best text for each row of this process."""
        best, _, _ = rank_answers(self._model, variables, batch, *self._tokens, **self._settings)
        return [self.choices[index] for index in local_rows(best)]
