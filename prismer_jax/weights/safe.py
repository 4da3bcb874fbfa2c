"""Reads files of weights without PyTorch and without executing anything in them, as views of the mapped file.

`load` reads a state dict, `load_tree` whatever plain data a file holds. What a file is, its contents say, not its name:

  PyTorch's zip files (1.6 and later), TorchScript archives among them; PyTorch's older files; pickles of NumPy arrays,
  as detectron2 writes them, by Python 2 or 3; safetensors; .npz; several of these by their index.

Arrays are read-only and, but for compressed zip members and pickles in protocols 0 to 2, views of one np.memmap: little
more than the names is read. A bit that flipped in an array is not noticed; compare the file's checksum for that. Even a
hostile file takes memory of at most 500 times its size, or 512 MB if it is small.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.weights import index
from prismer_jax.weights.archive import MAGIC, Module, Part, read_older, read_zip
from prismer_jax.weights.classes import SAFETENSORS, Malformed, Refused, Truncated, quoted, view
from prismer_jax.weights.unpickle import Unpickler
from prismer_jax.weights.wrappers import NESTS, state_dict_in

_HEADER = 100_000_000  # bytes, the format's own limit

# What a download that went wrong, or another file by mistake, begins with.
_MISTAKEN = (
    (rb"\s*<(!doctype|html|head|\?xml)", "is a web page, not weights: the server answered with a message"),
    (rb"version https://git-lfs", "is a Git-LFS pointer, not the weights themselves: run `git lfs pull` where it lies"),
    (rb"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, which is not read here: find the PyTorch version of these weights"),
    (rb".{257}ustar", "is a tar archive: unpack it, or if PyTorch before 0.1.10 wrote it, save it with a newer one"),
    (rb"\s*\{\s*\"", f"is a JSON file, not weights; an index of shards is called *{index.SUFFIX}"),
)


def load(path: storage.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Where the file holds a dict with exactly one of the dicts 'model', 'state_dict' ... (wrappers.NESTS) in it, that one
    is the state dict, and the rest is left, such as the optimiser's state or options: objects of unknown classes may
    stand there. Of a TorchScript archive, the parameters and buffers of its modules are read, under the keys that their
    state dict has. What wrappers put before keys stays: `rules.Table.spell` takes it off.

    Args:
      path: the file; or the index of several, one of the shards beside it, or the folder of either.

    Returns:
      {key: read-only array}; bfloat16 and float8 are the types of ml_dtypes.

    Raises:
      UserError: the file is missing, damaged, no file of weights, or holds something else; the message says the remedy.
    """
    path = storage.on_disk(path)
    with _explained(path):
        file = index.file_in(path) if path.is_dir() else path
        if (listing := index.index_of(file)) is None:
            return _load(file)
    with _explained(listing):
        return _joined(index.shards(listing))


def _joined(shards: Mapping[pathlib.Path, Collection[str]]) -> dict[str, np.ndarray]:
    """Returns the state dict that several files make up; raises Refused where two of them have one key."""
    state: dict[str, np.ndarray] = {}
    shard_of: dict[str, pathlib.Path] = {}
    for shard, keys in shards.items():
        part = _load(shard)
        if lacking := [key for key in keys if key not in part]:
            raise Refused(f"says that {shard.name} holds {quoted(lacking[0])}, which is not there: fetch both again")
        if twice := [key for key in part if key in state]:
            first = shard_of[twice[0]].name
            raise Refused(f"names two shards that hold {quoted(twice[0])}, {first} and {shard.name}: fetch them again")
        state |= part
        shard_of |= dict.fromkeys(part, shard)
    return state


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the state dict of one file."""
    tree = _read(path, (), state_dict_in)
    if isinstance(tree, Module):
        tree = tree.state_dict()
    if not isinstance(tree, dict) or not tree:
        kind = f"a {type(tree).__name__}" if not isinstance(tree, dict) else "nothing"
        raise UserError(f"{path}: holds {kind} instead of a state dict. Save torch.save(model.state_dict(), FILE).")
    if others := [key for key, value in tree.items() if type(key) is not str or not isinstance(value, np.ndarray)]:
        listed = ", ".join(f"{_shown(key)} ({type(tree[key]).__name__})" for key in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise UserError(
            f"{path}: is no state dict: {listed}{more} are no arrays. Save the state dict alone, or under one of the "
            f"keys {', '.join(NESTS)}."
        )
    return tree


def load_tree(path: storage.PathLike, records: Collection[str] = ()) -> Any:
    """Reads whatever plain data a file holds: nested dicts, lists, tuples, sets, numbers, strings, bytes, None, arrays.

    Args:
      path: the file.
      records: full names of classes ('sklearn.decomposition._pca.PCA') whose objects are read as the dicts of their
        attributes; the class is not imported.

    Returns:
      The data. Classes and functions that may stand in it are given as their names, and a str of Python 2 as bytes if
      it has 256 characters or more: only its reader can know which it was.

    Raises:
      UserError: as `load`.
    """
    return _read(storage.on_disk(path), records, lambda tree: tree)


def _read(path: pathlib.Path, records: Collection[str], part: Part) -> Any:
    with _explained(path):
        if path.is_dir():
            raise Refused("is a folder: give a file in it")
        if not path.stat().st_size:
            raise Refused("is empty: download it again")
        data = memoryview(np.memmap(path, np.uint8, mode="r"))
        start = bytes(data[:512])
        # First, because its first two bytes are a length, and so may be those of anything.
        if start[8:9] == b"{" and (length := int.from_bytes(start[:8], "little")) <= _HEADER:
            return _read_safetensors(path, data, 8 + length)
        for pattern, problem in _MISTAKEN:
            if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
                raise Refused(problem)
        if start[:2] == b"PK":
            return read_zip(path, data, records, part)
        if start[:1] in (b"\x80", b"(", b"c", b"}", b"]"):
            return _read_pickle(data, records, part)
        raise Refused(f"begins with {start[:8]!r}, as no file of weights does: check that it is the right one")


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Truncated as error:
        raise UserError(f"{path}: is cut short: {error}. Download it again.") from None
    except Malformed as error:
        raise UserError(f"{path}: is damaged: {error}. Download it again and compare its checksum.") from None
    except Refused as error:
        raise UserError(f"{path}: {error}.") from None
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist. Check the name, or fetch it with python -m tools.download.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _shown(key: Any) -> str:
    return quoted(key) if type(key) is str else type(key).__name__


def _read_pickle(data: memoryview, records: Collection[str], part: Part) -> Any:
    unpickler = Unpickler(data, records=records.__contains__)
    tree = unpickler.load()
    if type(tree) is int and tree == MAGIC:
        return read_older(data, unpickler.end, records, part)
    return unpickler.plain(part(tree))


def _read_safetensors(path: pathlib.Path, data: memoryview, first: int) -> dict[str, np.ndarray]:
    """Returns {key: array}; the library checks the header, and that the arrays lie one after the other to the end."""
    state = {}
    try:
        with safetensors.safe_open(path, "numpy") as file:
            # The library takes the last of equal keys.
            json.loads(bytes(data[8:first]), object_pairs_hook=index.without_repeats)
            for key in file.offset_keys():
                part = file.get_slice(key)
                if part.get_dtype() not in SAFETENSORS:
                    raise Refused(f"holds {quoted(key)} of the unknown dtype {part.get_dtype()}; save it as F32")
                state[key] = view(data[first:], SAFETENSORS[part.get_dtype()], part.get_shape())
                first += state[key].nbytes
    except safetensors.SafetensorError as error:
        reason = ascii(str(error).removeprefix("Error while deserializing header: "))[1:-1]  # which may quote the file
        raise Malformed(f"it is cut short, or its header makes no sense ({reason[:200]})") from None
    return state
