"""Whether a data set has labels of the kinds that something is to be learnt from, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax.errors import BadSample, UserError
from prismer_jax.labels import EXPERTS, select

SAMPLE = 200  # examples that are looked at


def check(parts: Sequence[Mapping[str, Any]], kinds: Sequence[str], where: str = "config.data") -> None:
    """Checks that some example, of a sample of the `source` of each part of a mixture, has a label of each kind.

    Raises:
      UserError: none has one of a kind; the message begins with `where`.
    """
    missing = set(kinds)
    for source in (part["source"] for part in parts):
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


def check_training(mixture: Sequence[Mapping[str, Any]], cfg: Mapping[str, Any], model: Any) -> None:
    """Checks that there are labels of each kind that a student is to learn, or that `config.targets` teaches."""
    targets = cfg.get("targets")
    kinds = select(targets.get("experts", "all")) if targets else ()
    check(mixture, [*getattr(model, "kinds", ()), *kinds])


def _has(label: Any) -> bool:
    """Returns whether there is a label: zero bytes say in a record that there is none."""
    return label is not None and len(label) > 0
