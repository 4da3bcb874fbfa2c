"""Photos in tar shards with their captions, as img2dataset and webdataset write them; read in any order.

A sample is KEY.jpg (or another kind of photo) with KEY.txt or KEY.json, its captions, in one tar. Its label files lie,
and it is called, as if the tar had been unpacked into a folder of its name: SHARD/KEY.jpg.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax.datasets import captions, img2dataset, label_names, photo_paths, tar_index
from prismer_jax.datasets.lists.source import Source
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import progress, storage, workers
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.offsets import Offsets
from prismer_jax.labels import EXPERTS, select

_COMPRESSED = {  # what undoes it, by the end of a file's name
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def load(
    path: storage.PathLike | Sequence[storage.PathLike],
    *,
    labels: storage.PathLike | None = None,
    task: Literal["caption", "all"] | None = None,
    source: str | None = None,
    experts: str | Sequence[str] = tuple(EXPERTS),
    limit: int | None = None,
    processes: int = 1,
) -> Source:
    """Returns a source of the photos in tars, whose headers are read once; what they say is kept (see tar_index.py).

    Args:
      path: a folder of tars, a tar, a pattern ('cc12m/*.tar', 'cc12m/{00000..01242}.tar'), or several.
      labels: the folder of label files: `labels/<expert>/SHARD/KEY.png`; or 'DIR/{expert}/{dataset}'.
      task: 'caption' or 'all', as in lists.load; there `image` is the encoded photo.
      source: what the data set is called; by default as the tars' folder.
      experts: whose label files are looked for.
      limit: take only so many photos, the first ones.
      processes: that read headers, the first time; more than one need a main program that can be imported.

    What cannot be used is left out and counted in the source's `dropped`: missing tars, members with damaged headers,
    what lies behind the end of a truncated tar, samples without a photo, side files without a caption, b/c.jpg in a.tar
    beside c.jpg in a/b.tar, which have one name ...; so are the photos that img2dataset says it could not fetch.

    Raises:
      UserError: there are no tars, or there is no photo in them, or none with a caption where `task` is 'caption'.
    """
    if task not in (None, "caption", "all"):
        raise UserError(f"Tars hold captions only, not what task={task!r} needs; use task='caption'.")
    labels = label_names.folder(labels)
    dropped = Dropped()
    paths = _expand(path, dropped)
    top = os.path.commonpath([os.path.dirname(os.path.abspath(tar)) for tar in paths])
    samples = Samples(paths, _indices(paths, limit, processes), top, source or os.path.basename(top), limit, dropped)
    dropped.warn(top)
    if not len(samples) or (task == "caption" and not samples.captioned):
        what = "no photos" if not len(samples) else f"no captions of the {len(samples)} photos"
        reason = f" Left out: {dropped.lines()[0].strip()}" if dropped else ""
        raise UserError(f"{top}: there are {what} in its {len(paths)} tars.{reason}")
    return Source(samples, task or "caption", labels, select(experts), dropped)


class Samples(Sequence[dict[str, Any]]):
    """The photos of tars with their captions, as lists.Source wants them; a tar is open only while it is read."""

    def __init__(
        self,
        paths: Sequence[str],
        indices: Iterator[tar_index.Index],
        top: str,
        source: str,
        limit: int | None,
        dropped: Dropped,
    ) -> None:
        """Args:
        paths: the tars.
        indices: of these, in order; no more are taken than `limit` needs.
        top: the folder below which a tar's path is part of its photos' names.
        source: what the data set is called.
        limit: so many photos, the first ones.
        dropped: counts what of the tars cannot be used.
        """
        self._paths, self._top, self._source = list(paths), top, source
        self._indices: list[tar_index.Index] = []
        self._captions: dict[int, list[str]] = {}  # of samples without a side file, from parquet tables
        self.captioned, count = False, 0
        nested, owners = _nested(paths), {}
        for index, tar in zip(indices, paths, strict=False):
            dropped.update(index.dropped)
            if tar in nested:
                index = _distinct(index, tar, owners, dropped)
            shard = os.path.splitext(tar)[0]
            img2dataset.count_failures(shard, dropped)
            bare = index.without_captions()
            table = img2dataset.table_captions(shard, dropped) if len(bare) else {}
            self.captioned |= bool(table) or len(bare) < len(index.names)
            for number in bare:
                key = os.path.splitext(index.names[number].decode())[0]
                if texts := table.get(key):
                    self._captions[count + int(number)] = texts
            self._indices.append(index)
            count += len(index.names)
            if limit is not None and count >= limit:
                break
        self._offsets = Offsets(len(index.names) for index in self._indices)
        self._length = count if limit is None else min(count, limit)

    @property
    def fingerprint(self) -> str:
        """Returns a digest of the names of all photos and of where they and their side files lie."""
        digest = hashlib.sha256()
        for index in self._indices:
            for array in (index.names, index.places):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self._length

    def _find(self, number: int) -> tuple[str, str, list[list[int]]]:
        """Returns a photo's tar, its member's name, and the places of its parts."""
        tar, place = self._offsets.find(range(len(self))[number])
        index = self._indices[tar]
        return self._paths[tar], index.names[place].decode(), index.places[place].tolist()

    def name(self, number: int) -> str:
        """Returns what the label files of a photo are called; nothing is read."""
        path, member, _ = self._find(number)
        return os.path.join(os.path.relpath(os.path.splitext(os.path.abspath(path))[0], self._top), member)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path, member, (photo, *sides) = self._find(number)
        places = dict(zip(captions.SIDES, sides, strict=True))
        try:
            with open(path, "rb", buffering=0) as file:
                image = _piece(file, photo)
                texts, lost = captions.beside(
                    lambda end: _piece(file, places[end]) if places[end][1] >= 0 else None,
                    f"{path}: {os.path.splitext(member)[0]}",
                )
        except OSError as error:
            raise BadSample(f"{path}: {error.strerror or error}: {member} cannot be read.", "unreadable tar") from None
        texts = texts or self._captions.get(number % len(self), [])
        name = self.name(number)
        example = {"id": name, "name": name, "image": image, "source": self._source, "captions": texts}
        if lost and places[".txt"][1] > tar_index.BLANK:  # otherwise the index has counted it
            example["left_out"] = [(lost, f"{path}: {member}")]
        return example


def _nested(paths: Sequence[str]) -> set[str]:
    """Returns the tars a.tar and a/b.tar, where photos of the first may be called as those of the second are."""
    tars = {os.path.splitext(os.path.abspath(path))[0]: path for path in paths}
    pairs = ((stem, os.fspath(above)) for stem in tars for above in pathlib.PurePath(stem).parents)
    return {tars[stem] for pair in pairs if pair[1] in tars for stem in pair}


def _distinct(index: tar_index.Index, tar: str, owners: dict[str, str], dropped: Dropped) -> tar_index.Index:
    """Returns an index without the photos whose label files would be those of `owners`, to which it adds the others."""
    keep = []
    for number, name in enumerate(index.names):
        key = label_names.key(os.path.join(os.path.splitext(os.path.abspath(tar))[0], name.decode()))
        if (owner := owners.setdefault(key, tar)) == tar:
            keep.append(number)
        else:
            case = f"{tar}: {name.decode()}: its label files would be those of a photo in {owner}. Rename one tar."
            dropped.add(label_names.USED_TWICE, case)
    return dataclasses.replace(index, names=index.names[keep], places=index.places[keep])


def _piece(file: Any, place: list[int]) -> bytes:
    offset, size = place
    data = os.pread(file.fileno(), size, offset)
    while len(data) < size:
        if not (more := os.pread(file.fileno(), size - len(data), offset + len(data))):
            raise OSError(f"ends at byte {offset + len(data)}, sooner than when it was opened")
        data += more
    return data


def _indices(paths: Sequence[str], limit: int | None, processes: int) -> Iterator[tar_index.Index]:
    """Yields the indices of tars, in order; with a limit one after the other, for the first may be enough."""
    if limit is not None:
        yield from (_make(path) if (stored := _stored(path)) is None else stored for path in paths)
        return
    indices = [_stored(path) for path in paths]
    missing = [path for path, index in zip(paths, indices, strict=True) if index is None]
    with (
        workers.ordered_map(_make, missing, processes) as new_indices,
        progress.bar("headers", len(missing), unit="tars", enabled=bool(missing)) as advance,
    ):
        new_indices = iter(new_indices)
        for index in indices:
            if index is None:
                index = next(new_indices)
                advance()
            yield index


def _stored(path: str) -> tar_index.Index | None:
    with contextlib.suppress(UserError):  # which _make reports
        return tar_index.stored(path)


def _make(path: str) -> tar_index.Index:
    try:
        return tar_index.make(path)
    except UserError as error:
        dropped = Dropped()
        dropped.add("unreadable tar", str(error))
        return tar_index.Index(np.zeros(0, np.bytes_), np.zeros((0, len(tar_index.PARTS), 2), np.int64), dropped)


def _expand(path: storage.PathLike | Sequence[storage.PathLike], dropped: Dropped) -> list[str]:
    """Returns the tars that paths, patterns and folders mean, each once; counts the missing and the compressed ones."""
    photo_paths.look_anew()
    paths: dict[str, str] = {}  # by the file, however it is spelled
    texts = [storage.plain(item) for item in ([path] if isinstance(path, storage.PathLike) else path)]
    for text in texts:
        if storage.is_remote(text):
            raise UserError(f"{text}: tars are read from local disks only. Copy them to one.")
        for pattern in _braces(text):
            if os.path.isdir(pattern):
                files = sorted(glob.glob(os.path.join(glob.escape(pattern), "**", "*.t*"), recursive=True))
                files = [file for file in files if file.endswith((".tar", *_COMPRESSED))]
            elif glob.has_magic(pattern) and not os.path.exists(pattern):
                files = sorted(glob.glob(pattern, recursive=True))
            else:
                files = [pattern] if os.path.isfile(pattern) else []
            if not files and pattern != text:  # one of a range
                dropped.add("missing tar", pattern)
            elif not files:
                raise UserError(f"{text}: there are no tars. Give a folder of them, or a pattern such as 'DIR/*.tar'.")
            tars = set(files)
            for file in files:
                end = next((end for end in _COMPRESSED if file.endswith(end)), None)
                if end is None:
                    paths.setdefault(photo_paths.identity(file), file)
                elif f"{file.removesuffix(end)}.tar" not in tars:  # which was unpacked
                    line = f"{file}: has no random access; `{_COMPRESSED[end]} {file}` unpacks it"
                    dropped.add("compressed tar", line)
    if not paths:
        reason = f" Left out: {dropped.lines()[0].strip()}" if dropped else ""
        raise UserError(f"{', '.join(texts)}: none of these tars can be read.{reason}")
    return list(paths.values())


def _braces(text: str) -> list[str]:
    """Spells out '{00000..00002}' as shells and webdataset do."""
    pieces = _RANGE.split(text)  # text, first, last, text, ...
    choices: list[list[str]] = [[pieces[0]]]
    for first, last, after in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        choices += [[f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)], [after]]
    return ["".join(choice) for choice in itertools.product(*choices)]
