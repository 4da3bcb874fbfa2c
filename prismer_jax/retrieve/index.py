"""The vectors of photos on disk: FOLDER/part-<random>.npz, each of some photos, written whole as they are encoded."""

from __future__ import annotations

import io
import json
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prismer_jax.files import storage


class Index:
    """Vectors of photos of one checkpoint, part by part: no more than one part is in memory.

    A photo is known by its path, and by size and time of it and of its labels; one that changed, or is gone, counts no
    more. Parts of other weights or other preprocessing are deleted when a part is added. Processes that fill one index
    at the same time each have parts of their own, so that a photo may be there twice; none is lost.

    Args:
      folder: made when there is something to put there.
      header: what vectors depend on but for the photos, as JSON has it.
    """

    def __init__(self, folder: pathlib.Path, header: Mapping[str, Any]) -> None:
        self._folder, self._header = folder, json.dumps(header, sort_keys=True)

    def parts(self) -> Iterator[tuple[list[str], list[list[int]], np.ndarray]]:
        """Yields (ids, [size, time] of each, vectors float16 [n q e]) of each part that is of this header."""
        for path in self._paths():
            with np.load(path, allow_pickle=False) as part:
                if str(part["header"]) == self._header:
                    yield part["images"].tolist(), part["files"].tolist(), part["vectors"]

    def add(self, images: list[str], files: list[list[int]], vectors: np.ndarray) -> None:
        """Writes a part."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._paths():
            with np.load(path, allow_pickle=False) as part:
                other = str(part["header"]) != self._header
            if other:
                path.unlink(missing_ok=True)
        data = io.BytesIO()
        np.savez(
            data,
            header=self._header,
            images=np.array(images),
            files=np.array(files, np.int64),
            vectors=vectors.astype(np.float16),
        )
        storage.write(self._folder / f"part-{secrets.token_hex(8)}.npz", data.getvalue())

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("part-*.npz"))
