"""The vectors of photos on disk: FOLDER/part-<random>.npz, each of some photos, written whole as they are encoded."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.files import storage


class Index:
    """Vectors of photos of one checkpoint, part by part: no more than one part is in memory.

    A photo is known by its path, and by size and time of it and of its labels; one that changed, or is gone, counts no
    more. Parts of other weights or other preprocessing are deleted when a part is added. Processes that fill one index
    at the same time each have parts of their own, so that a photo may be there twice; none is lost, unless one of them
    has other weights, which is an error of those whose parts it deletes.

    Args:
      folder: made when there is something to put there.
      header: what vectors depend on but for the photos, as JSON has it.
    """

    def __init__(self, folder: pathlib.Path, header: Mapping[str, Any]) -> None:
        self._folder, self._header = folder, json.dumps(header, sort_keys=True)
        self._known: set[pathlib.Path] = set()  # parts of this header that have been there

    def parts(self) -> Iterator[tuple[list[str], list[list[int]], np.ndarray]]:
        """Yields (ids, [size, time] of each, vectors float16 [n q e]) of each part that is of this header.

        Raises:
          UserError: a part is damaged, or one that was there is gone.
        """
        there = set()
        for path in self._paths():
            if part := self._read(path, "images", "files", "vectors"):
                self._known.add(path)
                there.add(path)
                images, files, vectors = part
                yield images.tolist(), files.tolist(), vectors
        if self._known - there:
            raise UserError(
                f"{self._folder}: a command with another checkpoint has deleted vectors that this one needs. Run it "
                "again, with an --index of its own."
            )

    def add(self, images: list[str], files: list[list[int]], vectors: np.ndarray) -> None:
        """Writes a part; raises UserError if another is damaged."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._paths():
            if self._read(path) is None:
                path.unlink(missing_ok=True)
        data = io.BytesIO()
        np.savez(
            data,
            header=self._header,
            images=np.array(images),
            files=np.array(files, np.int64),
            vectors=vectors.astype(np.float16),
        )
        path = self._folder / f"part-{secrets.token_hex(8)}.npz"
        storage.write(path, data.getvalue())
        self._known.add(path)

    def _read(self, path: pathlib.Path, *names: str) -> list[np.ndarray] | None:
        """Returns arrays of a part; None of one that has another header, or was deleted this moment."""
        try:
            with contextlib.suppress(FileNotFoundError), np.load(path, allow_pickle=False) as part:
                return [part[name] for name in names] if str(part["header"]) == self._header else None
        except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is damaged ({error}). Delete it, and its photos are encoded again.") from None
        return None

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("part-*.npz"))
