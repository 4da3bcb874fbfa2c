"""Whether a data set has labels of the kinds that something is to be learnt from, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prismer_jax.errors import BadSample, UserError
from prismer_jax.labels import EXPERTS

SAMPLE = 200  # examples that are looked at


def check(sources: Sequence[Any], kinds: Sequence[str], where: str) -> None:
    """Checks that some example, of a sample of each source, has a label of each kind.

    Raises:
      UserError: none has one of a kind; the message begins with `where`.
    """
    missing = set(kinds)
    for source in sources:
        for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)).tolist():
            if not missing:
                return
            try:
                example = source[index]
            except BadSample:
                continue
            missing -= {kind for kind in missing if _has(example.get(EXPERTS[kind].key))}
    if missing:
        names = ", ".join(kind for kind in kinds if kind in missing)
        raise UserError(
            f"{where}: no example has labels of {names}. Make them with python -m tools.make_labels, or leave them out "
            f"of what is to be learnt."
        )


def _has(label: Any) -> bool:
    """Returns whether there is a label: zero bytes say in a record that there is none."""
    return label is not None and len(label) > 0
