"""Data sets by name: `load(name, **kwargs)` returns a source, an object with `len` and `source[i]` -> example dict."""

from __future__ import annotations

import importlib
from typing import Any

from prismer_jax import config
from prismer_jax.errors import UserError, choose
from prismer_jax.files import storage

# Name -> module with a function `load`; a module is imported when its data set is asked for.
DATASETS = {
    "altered": "prismer_jax.datasets.altered",
    "choices": "prismer_jax.datasets.choices",
    "conversations": "prismer_jax.datasets.conversations",
    "fewshot": "prismer_jax.datasets.fewshot",
    "lists": "prismer_jax.datasets.lists",
    "objects": "prismer_jax.datasets.formats.objects",
    "pairs": "prismer_jax.datasets.pairs",
    "parquet": "prismer_jax.datasets.formats.parquet",
    "photos": "prismer_jax.datasets.photos",
    "records": "prismer_jax.shards.records",
    "scenes": "prismer_jax.datasets.scenes",
    "tars": "prismer_jax.datasets.tars",
}
PATHS = ("path", "images", "labels", "annotations", "names", "indices")  # on disks, but for those of REMOTE
REMOTE = ("records", "conversations", "pairs", "parquet")


def load(name: str, *, where: str = "", **kwargs: Any) -> Any:
    """Opens one of DATASETS with the arguments of its `load`; messages begin with its name, or with `where`.

    Raises:
      UserError: an unknown data set, an argument that it does not take, or a remote path of one that reads from disks.
    """
    function = importlib.import_module(choose("data set", name, DATASETS)).load
    kwargs = config.arguments(function, kwargs, where or name, extra=())
    if (limit := kwargs.get("limit")) is not None and limit < 1:
        raise UserError(f"{where or name}.limit is {limit}; it must be 1 at least, or left out.")
    if name not in REMOTE:
        for value in map(kwargs.get, PATHS):
            for path in [value] if isinstance(value, storage.PathLike) else value or ():
                storage.on_disk(path)
    return function(**kwargs)
