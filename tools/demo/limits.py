"""What the page takes from a visitor, and how often."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
import threading
import time
from collections.abc import Callable, Collection

import numpy as np
from PIL import Image

from prismer_jax.errors import BadSample
from prismer_jax.files.storage import PathLike
from prismer_jax.pp.image import read_image


@dataclasses.dataclass(frozen=True)
class Limits:
    """Attributes:
    megabytes: of a file.
    megapixels: of a photo, as its header claims: what is beyond is never unpacked.
    side: pixels of the longer side, to which larger photos are scaled when they are read.
    letters: of a question.
    waiting: requests that wait for the model; the next one is refused.
    per_minute: requests of one address.
    visitors: whose photo is kept; of the one who was not seen for longest it is dropped.
    minutes: that a photo is kept after its visitor's last request.
    """

    megabytes: int = 20
    megapixels: int = 50
    side: int = 1024
    letters: int = 200
    waiting: int = 16
    per_minute: int = 60
    visitors: int = 64
    minutes: int = 30


def read_photo(data: bytes, name: str, limits: Limits) -> np.ndarray:
    """Returns an uploaded photo as upright uint8 RGB [h, w, 3] whose sides are at most `limits.side`.

    Raises:
      BadSample: it is no photo, or more than the limits allow; the message is for the visitor, about a file `name`.
    """
    if len(data) > limits.megabytes << 20:
        raise BadSample(f"{name} has more than {limits.megabytes} MB. Make it smaller.", "too many bytes")
    try:
        pixels = read_image(data, limits.megapixels * 10**6, name)
    except BadSample as error:
        told = {
            "empty file": f"{name} is empty: it has 0 bytes. Choose another file.",
            "too many pixels": f"{name} has more than {limits.megapixels} million pixels. Make it smaller.",
        }
        raise BadSample(told.get(error.reason, str(error)), error.reason) from None
    longer = max(pixels.shape[:2])
    if longer <= limits.side:
        return pixels
    height, width = (max(1, round(side * limits.side / longer)) for side in pixels.shape[:2])
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0))


class Rate:
    """Counts the requests of each address within the last minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._taken: dict[str, collections.deque[float]] = {}
        self._lock = threading.Lock()

    def wait(self, address: str) -> int:
        """Returns 0 for a request that may be taken now, and counts it; else in how many seconds one may."""
        with self._lock:
            now = self._clock()
            for other in [key for key, times in self._taken.items() if times[-1] <= now - 60]:
                del self._taken[other]
            times = self._taken.setdefault(address, collections.deque())
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= self.per_minute:
                return max(1, math.ceil(times[0] + 60 - now))
            times.append(now)
            return 0


def sweep(folder: PathLike, keep: Collection[pathlib.Path], seconds: float) -> None:
    """Removes the files below a folder that were written more than so many seconds ago, but for those to keep."""
    oldest = time.time() - seconds
    for path in pathlib.Path(folder).rglob("*"):
        with contextlib.suppress(OSError):  # others remove files, too
            if path not in keep and path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
