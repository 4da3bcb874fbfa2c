"""What tells a file on a disk, and the files of an example, from what they were, without reading them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def version(path: str | os.PathLike) -> tuple[int, int]:
    """Returns a file's size in bytes and its time of change in ns; raises OSError where there is none."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def of_files(example: Mapping[str, Any], version: Callable[[str], Any] = version) -> dict[str, Any]:
    """Returns {key: version} of the photo and the label files of an example, as far as these are files."""
    paths = {key: value for key, value in example.items() if key == "image" or key.startswith("labels/")}
    return {key: version(path) for key, path in paths.items() if isinstance(path, str) and os.path.exists(path)}


def digest(examples: Iterable[Mapping[str, Any]]) -> str:
    """Returns a digest of the sizes of photos and label files; copies on other hosts may have other times."""
    sizes = [of_files(example, os.path.getsize) for example in examples]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
