"""Whether a data set's examples hold what is read of them: texts in lists, and labels, before hours are spent on it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import registry
from prismer_jax.config.values import fits
from prismer_jax.errors import BadSample, UserError
from prismer_jax.labels import EXPERTS, select

SAMPLE = 200  # examples that are looked at
# Keys of examples -> the type of what is said there.
TEXTS = {"captions": Sequence[str], "answers": Sequence[str], "question": str, "class_name": str}
MAKE = "Make them with python -m tools.make_labels"

logger = logging.getLogger(__name__)


def check(source: Any, where: str, pp: str = "", experts: str | Sequence[str] = ()) -> None:
    """Checks the types of texts by the first example that can be read, and warns where labels are missing.

    Args:
      source: of examples.
      where: the section of the config, such as 'config.data.web'.
      pp: its ops; experts that `labels_for` leaves out need no labels, nor do the source's own `blank` ones.
      experts: whose labels the model reads. Of one that no example of a sample has labels of, it sees empty maps.

    Raises:
      UserError: captions or answers are no lists of texts, or a question or a class name is no text.
    """
    first = next(sample(source), {})
    for key, kind in TEXTS.items():
        if (value := first.get(key)) is not None and not fits(value, kind):
            form = "captions and answers are lists of texts, a question and a class name are one"
            raise UserError(f"{where}: an example has {f'{key}: {value!r}'[:100]}; {form}.")
    ops = registry.parse(pp) if pp else ()
    shown = [select((*args, *kwargs.values(), "all")[0]) for op, args, kwargs in ops if op == "labels_for"]
    unfiltered = [name for name in select(experts) if all(name in names for names in shown)]
    if absent := missing([source], [name for name in unfiltered if name not in getattr(source, "blank", ())]):
        logger.warning("%s: no labels of %s; the model sees empty maps. %s.", where, ", ".join(absent), MAKE)


def check_taught(parts: Sequence[Mapping[str, Any]], kinds: Sequence[str], where: str = "config.data") -> None:
    """Checks that the `source` of some part of a mixture has labels of each kind that is to be learnt.

    Raises:
      UserError: none has one of a kind; the message begins with `where`.
    """
    if names := missing([part["source"] for part in parts], kinds):
        left_out = "or leave them out of what is to be learnt"
        raise UserError(f"{where}: no example has labels of {', '.join(names)}. {MAKE}, {left_out}.")


def missing(sources: Sequence[Any], kinds: Sequence[str]) -> list[str]:
    """Returns the kinds of which no example, of a sample of each source, has a label."""
    left = set(kinds)
    for source in sources if kinds else ():
        for example in sample(source):
            left -= {kind for kind in left if _has(example.get(EXPERTS[kind].key))}
            if not left:
                return []
    return [kind for kind in kinds if kind in left]


def sample(source: Any) -> Iterator[Mapping[str, Any]]:
    """Yields examples evenly spaced, as many as are looked at, that can be read."""
    for index in np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)).tolist():
        with contextlib.suppress(BadSample):
            yield source[index]


def _has(label: Any) -> bool:
    """Returns whether there is a label: zero bytes say in a record that there is none."""
    return label is not None and len(label) > 0
