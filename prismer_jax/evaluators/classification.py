"""Classification: the class whose name the model ranks highest after a prompt, such as 'A photo of a'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.evaluators.vqa import VQAEvaluator


class ClassificationEvaluator(VQAEvaluator):
    """Top-1 accuracy in percent: a question about every photo, put by the pp's prompt, with one right answer.

    Yields `accuracy`, `accuracy_blank` and `accuracy_most_frequent`. An example says its class as `class_name`, in the
    words of `classes`; of classes with the same name either is right. `predictions` is [{"image_id", "class"}].

    Args:
      classes: names, or a JSON file with a list of them.
      k: so many names, those with the likeliest first token, are ranked as a whole.
      options: of `VQAEvaluator` but `method` and `answers`. style='reference' writes names in lower case, as the
        reference's few-shot training does (dataset/classification_dataset.py, model/prismer_caption.py).

    Raises:
      UserError: no classes, or an unknown option; in `run`: an example without a class, or of none of these.
    """

    id_key, text_key = "image_id", "class"
    choice = "class"

    def __init__(self, *, classes: Sequence[str] | str | None = None, k: int = 32, **options: Any) -> None:
        if not classes:
            raise UserError("Classification needs `classes`: their names, or a JSON file with a list of them.")
        super().__init__(method="rank", answers=classes, k=k, **options)
        self._class_names = frozenset(self.ranking.choices)

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        name = example.get("class_name")
        if name is not None and name not in self._class_names:
            raise UserError(f"Example {example.get('id', '?')} is of class {name!r}, which `classes` does not name.")
        return () if name is None else (name,)
