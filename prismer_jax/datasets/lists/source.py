"""Examples of photos that were found by lists, in folders, tars or tables: what is opened when one is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from prismer_jax import label_files
from prismer_jax.datasets import captions
from prismer_jax.datasets.compact_dicts import CompactDicts
from prismer_jax.files.dropped import Dropped
from prismer_jax.files.storage import PathLike

Example = dict[str, Any]
Task = Literal["caption", "question", "all"]


class Source:
    """Examples of photos: `len(source)`, `source[i]`. Cheap to pickle.

    Attributes:
      dropped: what was left out when it was opened; further samples turn out to be bad when they are read.
      files, split: the lists that it was read from, if there are any, and which part of them.
    """

    def __init__(
        self,
        photos: Iterable[Example],
        task: Task,
        labels: str | None,
        experts: Sequence[str],
        dropped: Dropped,
        limit: int | None = None,
    ) -> None:
        """Args:
        photos: dicts with `id`, `name`, `image`, `source`; and if they have it, `dataset`, `captions` or
          `captions_file`, `questions`, and what is passed on as it is. A sequence is kept, anything else packed; one
          that is to be asked about may say in `questions` how many each photo has, so that none is read before.
        task: what an item is.
        labels: folder of label files.
        experts: whose label files are looked for.
        dropped: the report.
        limit: of the task 'question': so many, the first ones.
        """
        self.files: list[PathLike] = []
        self.split = ""
        self._items: np.ndarray | None = None
        self._texts: int | None = None
        if task == "caption" and isinstance(photos, list):
            self._texts = sum(max(1, len(photo["captions"])) for photo in photos)
        if task == "question":
            if (counts := getattr(photos, "questions", None)) is None:
                photos = list(photos)
                counts = [len(photo["questions"]) for photo in photos]
            pairs = [(i, j) for i, count in enumerate(counts) for j in range(count)]
            self._items = np.asarray(pairs[:limit], np.int32).reshape(-1, 2)
        self._photos = photos if isinstance(photos, Sequence) and not isinstance(photos, list) else _Photos(photos)
        self._task, self._labels, self._experts, self.dropped = task, labels, experts, dropped

    def __len__(self) -> int:
        return len(self._photos) if self._items is None else len(self._items)

    @property
    def fingerprint(self) -> str | None:
        """Returns a digest of the lists, or of what the tars hold; None of folders. See data_seen.py."""
        return _digest(self.files, self.split) if self.files else getattr(self._photos, "fingerprint", None)

    @property
    def made_of(self) -> str | None:
        """Returns a digest of what examples depend on, with task and places of photos and labels; None of folders."""
        if (data := self.fingerprint) is None:
            return None
        data = self._photos.data if self.files else data.encode()
        return hashlib.sha256(f"{self._task} {self._labels} ".encode() + data).hexdigest()

    @property
    def texts(self) -> int:
        """Returns how many captions, or questions, all items have: an epoch has each once on average."""
        return len(self) if self._texts is None else self._texts

    def name(self, index: int) -> str:
        """Returns what the label files of an item's photo are called, without reading the photo."""
        return self._photos.name(index if self._items is None else int(self._items[index, 0]))

    def __getitem__(self, index: int) -> Example:
        number, question = (index, None) if self._items is None else map(int, self._items[index])
        example = self._photos[number]
        name, dataset, source = example.pop("name"), example.pop("dataset", None), example.pop("source")
        questions = example.pop("questions", [])
        if question is not None:
            example.pop("captions", None)
            asked = questions[question]
            # Questions of one photo are no independent samples: evaluations must know it.
            photo = name if isinstance(example["image"], bytes) else example["image"]
            id = asked.get("question_id", f"{example['id']}#{question}")
            example |= {"id": str(id), "photo": photo, **asked}
        elif file := example.pop("captions_file", None):
            example["captions"], lost = captions.read(file)
            if lost:
                example["left_out"] = [(lost, file)]
        else:
            example.setdefault("captions", [])
        if self._task == "all":
            example |= {"name": name, "source": source, "questions": questions}
        else:
            example.pop("left_out", None)
        if self._labels is not None:
            folder = self._labels.replace("{dataset}", str(dataset or source))
            example.update(label_files.locate(folder, self._experts, name))
        return example


class _Photos(CompactDicts):
    """Photos of lists and folders."""

    def name(self, index: int) -> str:
        return self[index]["name"]


def _digest(paths: Sequence[PathLike], split: str) -> str:
    """Returns a digest of the bytes of files, and of which part of them is meant."""
    whole = hashlib.sha256(split.encode())
    for path in paths:
        with open(os.path.expanduser(path), "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
