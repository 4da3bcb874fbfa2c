"""Where labels go: files as in the official repository, or one file an expert and shard on the way to ArrayRecord.

Both are asked the same: `open` a shard, under its lease, to write what is missing in it, and `read` what is there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pathlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Mapping
from typing import Protocol

from prismer_jax import label_files, labels
from prismer_jax.errors import BadSample
from prismer_jax.experts.expert import Label
from prismer_jax.files import folders, storage
from prismer_jax.labelling import official
from prismer_jax.labelling.ledger import Shard
from prismer_jax.labelling.pipeline import Photo
from prismer_jax.pp.image_size import image_size

SUFFIXES = (".json", ".npz", ".png")  # of the files of a label


class Writer(Protocol):
    """Takes the labels that an expert gives the photos of one shard. Threads share it."""

    def has(self, photo: Photo) -> bool:
        """Returns whether the label is there."""

    def write(self, photo: Photo, label: Label | None) -> None:
        """Keeps a label; None is the empty one."""

    def publish(self, check: Callable[[], None]) -> None:
        """Makes the shard's labels count; `check` raises where that is no longer for this process to do."""

    def close(self) -> None:
        """Forgets what was not published."""


class Writers:
    """Takes the labels of several kinds that an expert makes of a photo at once: there when all are."""

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self._writers = dict(writers)

    def has(self, photo: Photo) -> bool:
        return all(writer.has(photo) for writer in self._writers.values())

    def write(self, photo: Photo, made: Mapping[str, Label] | None) -> None:
        """Keeps {kind: label}, of which those that are there stay; None are empty ones."""
        for kind, writer in self._writers.items():
            if not writer.has(photo):
                writer.write(photo, None if made is None else made[kind])

    def publish(self, check: Callable[[], None]) -> None:
        for writer in self._writers.values():
            writer.publish(check)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class Store(Protocol):
    """The labels of all experts and shards."""

    def open(self, expert: str, shard: Shard) -> Writer:
        """Returns a writer of what is missing in a shard."""

    def is_whole(self, expert: str, shard: Shard) -> bool:
        """Returns whether the labels of a shard that was marked as done are still there, as far as one look tells."""

    def read(self, expert: str, shard: Shard, photo: Photo) -> dict[str, bytes] | None:
        """Returns the files of a label, {suffix: bytes}; None if it is not there."""


class LabelFiles:
    """FOLDER/<expert>/<photo>.png, with .json or .npz beside it: each label is whole by itself, whoever writes it."""

    def __init__(self, folder: pathlib.Path, official: bool = False) -> None:
        """Args:
        official: as `make_labels --official` says, see official.py.
        """
        self.folder, self._official = folder, official

    def open(self, expert: str, shard: Shard) -> Writer:
        return _Files(self.folder, expert, self._official)

    def is_whole(self, expert: str, shard: Shard) -> bool:
        return True  # to look at each of millions of files takes hours: that is what --recheck is for

    def read(self, expert: str, shard: Shard, photo: Photo) -> dict[str, bytes] | None:
        if not label_files.is_whole(self.folder, expert, photo.name):
            return None
        paths = (label_files.path_of(self.folder, expert, photo.name).with_suffix(suffix) for suffix in SUFFIXES)
        return {path.suffix: path.read_bytes() for path in paths if os.path.exists(path)}


class _Files:
    def __init__(self, folder: pathlib.Path, expert: str, official_too: bool) -> None:
        self._folder, self._expert, self._official = folder, expert, official_too

    def has(self, photo: Photo) -> bool:
        if self._official:
            if not photo.source:
                return False  # a name does not tell how the official code sees the photo
            official.check(photo)
        return label_files.is_whole(self._folder, self._expert, photo.name)

    def write(self, photo: Photo, label: Label | None) -> None:
        if label is not None:
            self._write(photo, label)
            return
        with contextlib.suppress(BadSample):  # a photo that nobody can read needs no label
            self._write(photo, Label(labels.blank(self._expert, *image_size(photo.source, where=photo.name))))

    def _write(self, photo: Photo, label: Label) -> None:
        try:
            self._write_files(photo, label)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise BadSample(
                f"{photo.name}: its label files, whose suffixes are longer, would have names too long for the disk. "
                "Give it a shorter name.",
                "name too long for label files",
            ) from None

    def _write_files(self, photo: Photo, label: Label) -> None:
        if self._official:
            official.check(photo)
            if labels.EXPERTS[self._expert].embed == "words":  # first, as the map says that all is there
                png = label_files.path_of(self._folder, self._expert, photo.name)
                official.write_words(png, label.features, label.words)
        label_files.write(self._folder, self._expert, photo.name, **vars(label))

    def publish(self, check: Callable[[], None]) -> None:
        check()  # the files are there, and would be the same from another process

    def close(self) -> None:
        pass


class LabelShards:
    """FOLDER/<expert>.<first>-<last>.zip, whole or not at all: the labels of millions of photos are too many files.

    Members are called as the photo's id with the suffix of the file.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._opened = functools.lru_cache(maxsize=16)(lambda path, written: _open(path))
        self._lock = threading.Lock()

    def path(self, expert: str, shard: Shard) -> pathlib.Path:
        return self.folder / f"{expert}.{shard.start:09d}-{shard.stop:09d}.zip"

    def open(self, expert: str, shard: Shard) -> Writer:
        return _Zip(self.path(expert, shard))

    def is_whole(self, expert: str, shard: Shard) -> bool:
        return _open(self.path(expert, shard)) is not None

    def read(self, expert: str, shard: Shard, photo: Photo) -> dict[str, bytes] | None:
        path = self.path(expert, shard)
        try:
            written = path.stat().st_mtime_ns  # a file that was replaced is opened anew
        except FileNotFoundError:
            return None
        with self._lock:
            file = self._opened(path, written)
            if file is None or photo.id + ".png" not in file.NameToInfo:
                return None
            suffixes = [suffix for suffix in SUFFIXES if photo.id + suffix in file.NameToInfo]
            return {suffix: file.read(photo.id + suffix) for suffix in suffixes}

    def remove(self, expert: str, shard: Shard) -> None:
        """Forgets a shard's labels, which are elsewhere by now."""
        self.path(expert, shard).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets all labels."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what killed processes have left, when none is at work."""
        folders.sweep(self.folder)


class _Zip:
    """Labels of an earlier start stay; what is added goes into a copy, which replaces the file when it is whole."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._lock = path, threading.Lock()
        archive = _open(path)
        self._there = frozenset(() if archive is None else archive.namelist())
        self._file: zipfile.ZipFile | None = None
        self._temporary = contextlib.ExitStack()

    def has(self, photo: Photo) -> bool:
        return photo.id + ".png" in self._there

    def write(self, photo: Photo, label: Label | None) -> None:
        expert = self._path.name.partition(".")[0]
        files = {".png": b""} if label is None else label_files.files(expert, **vars(label))
        with self._lock:
            file = self._begin()
            for suffix, data in files.items():
                file.writestr(photo.id + suffix, data)

    def _begin(self) -> zipfile.ZipFile:
        if self._file is None:
            self._path.parent.mkdir(exist_ok=True)
            name = self._temporary.enter_context(storage.temporary(self._path))
            if self._there:
                shutil.copyfile(self._path, name)
            self._file = zipfile.ZipFile(name, "a")  # not compressed: PNGs are
        return self._file

    def publish(self, check: Callable[[], None]) -> None:
        if not self._there:
            self._begin()  # a shard without one label is done, too
        if self._file is None:
            check()
            return
        self._file.close()
        check()
        storage.publish(self._file.filename, self._path)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been told of already
                self._file.close()
        self._temporary.close()


def _open(path: pathlib.Path) -> zipfile.ZipFile | None:
    """A whole zip; None if there is none or it was cut off: its table of contents stands at its end."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile):
        return None
