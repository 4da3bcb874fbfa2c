"""One folder of golden numbers: its inputs, its outputs, and the weights that a rule fills from the tensors' names."""

from __future__ import annotations

import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.weights import rules

Outputs = Iterator[tuple[Any, ...]]  # (name, array) or (name, array, Check)


class Mismatch(Exception):
    """What differs cannot be said as a relative error: keys, frozen parameters, ..."""


class Case:
    """One folder of golden numbers."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.name = folder, folder.name
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
            stored = folder / "io.npz"
            self.arrays = dict(np.load(stored, allow_pickle=False)) if stored.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a golden case ({error}).") from None
        self.config = self.manifest.get("config", {})

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[f"in/{name}"]

    def inputs(self, pattern: str) -> list[str]:
        """Returns what stands for the group in the names of inputs that match `pattern`, as 'caption0'."""
        return sorted(m[1] for m in (re.fullmatch(f"in/{pattern}", name) for name in self.arrays) if m)

    def wants(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.arrays)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns {key: shape} of the weights."""
        return {key: tuple(entry["shape"]) for key, entry in self.manifest["tensors"].items()}

    def state(self) -> dict[str, np.ndarray]:
        """Returns the weights: a function of the tensors' names alone (the rule of golden/README.md)."""
        gains, salt, state = self.manifest["gain"], self.manifest["salt"], {}
        for key, entry in self.manifest["tensors"].items():
            if "tied_to" not in entry and entry["dtype"].startswith("float"):
                state[key] = filled(salt, gains, key, tuple(entry["shape"]))
            elif "tied_to" not in entry:
                state[key] = self.arrays.get(f"int/{key}", np.zeros(entry["shape"], entry["dtype"]))
        tied = {k: state[e["tied_to"]] for k, e in self.manifest["tensors"].items() if "tied_to" in e}
        return state | tied


def filled(salt: str, gains: Mapping[str, float], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array that stands under a key."""
    return fill(salt + key, shape, next((gain for pattern, gain in gains.items() if re.search(pattern, key)), 1.0))


def fill(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(key.encode()))  # the legacy generator: its stream is frozen
    noise, leaf = rng.standard_normal(int(np.prod(shape))).reshape(shape), key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        x = 0.5 + rng.random_sample(shape)
    elif leaf == "running_mean":
        x = 0.1 * noise
    elif len(shape) <= 1:
        x = (1.0 if leaf in ("weight", "gamma", "scale") else 0.0) + 0.1 * noise
    else:
        x = gain * noise / np.sqrt(np.prod(shape[1:]))
    return x.astype(np.float32)


def check_shapes(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a Mismatch unless two state dicts have the same keys and shapes."""
    if wrong := [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]:
        raise Mismatch(f"keys or shapes differ: {rules.grouped(sorted(wrong))}")


def index_of(name: str) -> tuple[str, tuple[slice, ...]]:
    """Splits 'out/x[:,::4]' into the array's name and the index that was applied to it before storing."""
    base, _, index = name.partition("[")
    if ".." in index:  # what an axis counts, as in 'table[-5..5]'
        return name, ()
    parts = index.rstrip("]").split(",") if index else []
    return base, tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)


@dataclass(frozen=True)
class Check:
    """How an output is compared where it is not by the relative error and the manifest's tolerance.

    Attributes:
      measure: (ours, theirs) -> error, finite only where it makes sense.
      tolerance: the largest error allowed.
    """

    measure: Callable[[np.ndarray, np.ndarray], float]
    tolerance: float


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns ||a-b|| / ||b||, infinity for another shape, and for integers and strings 0 or infinity."""
    if ours.shape != theirs.shape:
        return np.inf
    if not np.issubdtype(theirs.dtype, np.floating):
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    difference, norm = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    error = difference / norm if norm else difference
    return float(error) if np.isfinite(error) else np.inf


def levels(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the share of pixels of an 8-bit image that differ, infinity if any differs by more than one level."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    difference = np.abs(ours.astype(int) - theirs)
    return float((difference > 0).mean()) if difference.max(initial=0) <= 1 else np.inf


LABEL_IMAGE = Check(levels, 0.01)
