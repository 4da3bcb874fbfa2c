"""Data sets by name: `load(name, **kwargs)` returns a source, an object with `len` and `source[i]` -> example dict."""

from __future__ import annotations

import importlib
from typing import Any

from prismer_jax.errors import choose

# Name -> module with a function `load`; a module is imported when its data set is asked for.
DATASETS = {
    "fewshot": "prismer_jax.datasets.fewshot",
    "lists": "prismer_jax.datasets.lists",
    "records": "prismer_jax.shards.records",
    "scenes": "prismer_jax.datasets.scenes",
    "tars": "prismer_jax.datasets.tars",
}


def load(name: str, **kwargs: Any) -> Any:
    """Opens a data set.

    Args:
      name: one of DATASETS.
      **kwargs: of that data set's `load`.

    Raises:
      UserError: there is no data set of this name.
    """
    return importlib.import_module(choose("data set", name, DATASETS)).load(**kwargs)
