"""Files of results in the official formats, and the check that they hold the ids that are asked for.

COCO and NoCaps take [{"image_id", "caption"}], the VQA servers [{"question_id", "answer"}], every id once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Hashable

from prismer_jax.errors import UserError
from prismer_jax.files import storage


def read_results(path: str | os.PathLike[str], id_key: str, text_key: str) -> dict[int | str, str]:
    """Reads {id: text} from a result file, such as read_results(path, "image_id", "caption").

    Texts are taken as they are, empty ones and those of any script too.

    Raises:
      UserError: no such file, not a list of entries with both keys, a text that is none, or an id that occurs twice.
    """
    try:
        entries = json.loads(storage.on_disk(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file of results ({error}).") from None
    if not isinstance(entries, list):
        raise UserError(f'{path}: results are a list of {{"{id_key}", "{text_key}"}}.')
    texts: dict[int | str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get(id_key), int | str):
            raise UserError(f'{path}: {entry!r} has no "{id_key}": results are a list of {{"{id_key}", "{text_key}"}}.')
        if not isinstance(entry.get(text_key), str):
            raise UserError(f'{path}: {id_key} {entry[id_key]!r} has no text as "{text_key}".')
        if entry[id_key] in texts:
            raise UserError(f"{path}: {id_key} {entry[id_key]!r} occurs twice: which of the two counts?")
        texts[entry[id_key]] = entry[text_key]
    return texts


def check_ids(predictions: Collection[Hashable], references: Collection[Hashable]) -> None:
    """Raises a UserError where the predicted ids are not exactly those of the references: no silent wrong average."""
    if not references:
        raise UserError("Nothing to score: the set of references is empty. Check the data set's split or list.")
    if missing := [key for key in references if key not in predictions]:
        raise UserError(f"{len(missing)} of {len(references)} ids have no prediction, such as {missing[0]!r}.")
    if unknown := [key for key in predictions if key not in references]:
        raise UserError(f"{len(unknown)} predictions have ids without references, such as {unknown[0]!r}.")
