"""Where in a tar its photos and their side files lie: its headers read once, so that any photo is two reads away.

What was read is kept below `storage.data_folder()`, not beside the tar: img2dataset takes every .json there for the
statistics of a shard (its main.py), and the folder may be another user's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from prismer_jax.datasets import captions
from prismer_jax.datasets.captions import SIDES
from prismer_jax.datasets.formats.suffixes import SUFFIXES, UNREAD, UNREAD_REASON
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage, versions
from prismer_jax.files.dropped import Dropped

PARTS = ("photo", *SIDES)  # of a sample
ABSENT = (0, -1)  # offset and size of a part that a sample lacks
VERSION = 2
_BLOCK = 512  # bytes, that everything in a tar begins at a multiple of
_END = 2 * _BLOCK  # of zeros, with which a whole tar ends
BLANK = 2  # bytes of a .txt that may be an end of a line alone
# How compressed files begin: what undoes it.
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


@dataclasses.dataclass(frozen=True)
class Index:
    """The samples of a tar, in its order.

    Attributes:
      names: bytes [n], of the photos' members, in UTF-8.
      places: int64 [n, 3, 2], offset and size in bytes of the photo, the .txt and the .json; size -1 for what is not
        there, and for side files that hold no caption.
      dropped: what of the tar cannot be used.
    """

    names: np.ndarray
    places: np.ndarray
    dropped: Dropped

    def without_captions(self) -> np.ndarray:
        """Returns the numbers of the samples without a caption in a .txt or a .json."""
        return np.flatnonzero((self.places[:, 1:, 1] < 0).all(1))


def stored(path: str) -> Index | None:
    """Returns the index that is stored, if it is of this very tar.

    Raises:
      UserError: there is no such tar.
    """
    try:
        with open(_file(path), encoding="utf-8") as file:
            content = json.load(file)
        if content["made_of"] == _made_of(path):
            return _from_lists(content["names"], content["places"], Dropped.from_json(content["dropped"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not ours
        pass
    return None


def make(path: str) -> Index:
    """Returns the index of a tar, which is stored if the folder of data can be written to.

    Raises:
      UserError: the tar cannot be read at all.
    """
    made_of = _made_of(path)
    try:
        names, places, dropped = scan(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from None
    content = {"made_of": made_of, "names": names, "places": places, "dropped": dropped.to_json()}
    with contextlib.suppress(OSError):  # where it cannot be written it is made each time
        file = _file(path)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with storage.temporary(file) as name:
            pathlib.Path(name).write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
            os.replace(name, file)  # there is no need to wait for the disk: a damaged index is made anew
    return _from_lists(names, places, dropped)


def _file(path: str) -> str:
    """Returns where the index of a tar is stored: in a folder for each folder of tars."""
    folder, name = os.path.split(path)
    where = "" if os.path.isabs(folder) else os.getcwd()
    return f"{_folder(folder, where, os.environ.get('PRISMER_DATA_DIR'))}/{name}.json"


@functools.lru_cache(maxsize=1024)
def _folder(folder: str, *_: str | None) -> str:
    """Returns the folder of the indices of a folder of tars; further arguments are what it depends on."""
    real = os.path.realpath(folder)
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return str(storage.data_folder() / "tars" / f"{os.path.basename(real)}-{digest}")


def _made_of(path: str) -> list[Any]:
    """What tells one tar from another of its name."""
    try:
        return [VERSION, "".join(SUFFIXES), *versions.version(path)]  # suffixes: Pillow may read more one day
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None


def _from_lists(names: list[str], places: list[int], dropped: Dropped) -> Index:
    table = np.asarray(places, np.int64).reshape(-1, len(PARTS), 2)
    encoded = np.asarray([name.encode() for name in names], np.bytes_)
    if len(encoded) != len(table):
        raise ValueError("names and places do not fit")
    return Index(encoded, table, dropped)


def scan(path: str) -> tuple[list[str], list[int], Dropped]:
    """Reads the headers of a tar: names of photos, their places (six numbers a photo), and what cannot be used.

    The members of a sample have one name up to the first dot, as webdataset has it; the rest, in any case, says what
    they are. A damaged header is passed over to the next good one.
    """
    dropped = Dropped()
    samples: dict[str, dict[str, Any]] = {}
    end = 0  # of the last member
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for member in _members(file, size):
            if member.offset > end and _holds_data(file, end, member.offset):
                dropped.add("damaged tar header", f"{path}: at byte {end}, before {member.name!r}")
            end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            if member.isfile() and end <= size:
                _add(samples, member, path, dropped)
        if not end:
            dropped.add(*_no_members(file, size, path))
        elif size - end < _END or _holds_data(file, size - _END, size):
            dropped.add("truncated tar", f"{path}: has {size} bytes, and no mark of its end.")
        elif _holds_data(file, end, size):
            dropped.add("damaged tar header", f"{path}: at byte {end}, the last")
        names, places = [], []
        for key, sample in samples.items():
            case = f"{path}: {key!r}"
            if "photo" not in sample:
                if "other" not in sample:  # which is counted as what it is
                    dropped.add("sample without photo", case)
            elif not sample["photo"][1]:
                dropped.add("empty file", f"{path}: {sample['name']!r}")
            else:
                _look_for_captions(file, sample, case, dropped)
                names.append(sample["name"])
                places += [number for part in PARTS for number in sample.get(part, ABSENT)]
    return names, places, dropped


def _no_members(file: Any, size: int, path: str) -> tuple[str, str]:
    """Returns the reason why a file has no members, and the case."""
    file.seek(0)
    start = file.read(8)
    if tool := next((tool for magic, tool in _COMPRESSED.items() if start.startswith(magic)), None):
        return "compressed tar", f"{path}: has no random access; `{tool} < {path} > NEW.tar` unpacks it"
    if size < _END and not any(start):
        return "truncated tar", f"{path}: has {size} bytes. Fetch it again."
    if size <= 1 << 20 and not _holds_data(file, 0, size):
        return "tar without members", f"{path}: img2dataset leaves one where no photo could be fetched."
    return "not a tar", f"{path}: has no members. Fetch it again."


def _look_for_captions(file: Any, sample: dict[str, Any], case: str, dropped: Dropped) -> None:
    """Looks into the side files of a sample, unless it has a .txt with a text, and takes away those without a caption.

    So what has no caption is counted before it is read; where each photo has a .txt, as usual, nothing is to be done.
    """
    if not any(side in sample for side in SIDES) or sample.get(".txt", ABSENT)[1] > BLANK:
        return

    def side(end: str) -> bytes | None:
        return os.pread(file.fileno(), *sample[end][::-1]) if end in sample else None

    with contextlib.suppress(BadSample):  # which reading the sample raises
        texts, lost = captions.beside(side, case)
        if lost:
            dropped.add(lost, case)
        if not texts:
            for end in SIDES:
                sample.pop(end, None)


def _members(file: Any, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar whose headers are sound, up to its end or to where it is cut."""
    start = 0
    while start < size:
        file.seek(start)
        try:
            # ignore_zeros passes over headers that are damaged, too, ...
            tar = tarfile.open(fileobj=file, mode="r:", ignore_zeros=True, errors="surrogateescape")  # noqa: SIM115
            while (member := tar.next()) is not None:
                tar.members = []  # that it keeps for look-ups by name
                start = tar.offset
                yield member
            return
        except tarfile.TarError:  # ... but not the second of two headers that belong together
            start += _BLOCK


def _holds_data(file: Any, start: int, end: int) -> bool:
    """Whether the bytes between two members are more than padding."""
    before = file.tell()
    file.seek(start)
    block = file.read(min(end - start, 1 << 20))
    file.seek(before)
    return any(block)


def _add(samples: dict[str, dict[str, Any]], member: tarfile.TarInfo, path: str, dropped: Dropped) -> None:
    name = member.name.removeprefix("./")
    folder, base = os.path.split(name)
    stem, dot, ending = base.partition(".")
    ending = dot + ending.lower()
    if not stem:  # hidden: what macOS adds to tars
        return
    case = f"{path}: {name!r}"
    part = "photo" if ending in SUFFIXES else ending
    if ending in UNREAD:
        dropped.add(UNREAD_REASON, case)
        samples.setdefault(os.path.join(folder, stem), {})["other"] = member.offset_data, member.size
        return
    if part not in PARTS:
        dropped.add("tar member of no known kind", case)
        return
    if name.startswith("/") or ".." in folder.split("/"):
        dropped.add("tar member outside of its folder", case)
        return
    try:
        name.encode()
    except UnicodeEncodeError:
        dropped.add("file name that is not UTF-8", case)
        return
    sample = samples.setdefault(os.path.join(folder, stem), {})
    if part in sample:
        dropped.add("duplicate key in a tar", case)
        return
    sample[part] = member.offset_data, member.size
    if part == "photo":
        sample["name"] = name
