"""What a labelling job makes: a folder of label files, or a data set of ArrayRecord shards with labels."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from prismer_jax import label_files, labels
from prismer_jax.datasets import data_seen
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.labelling import official
from prismer_jax.labelling.job import Job, Stage, split
from prismer_jax.labelling.label_stores import LabelFiles, LabelShards
from prismer_jax.labelling.ledger import LABELS, Ledger
from prismer_jax.labelling.recording import Recording
from prismer_jax.shards import build, metadata


def check_folder(folder: pathlib.Path) -> None:
    """Raises UserError for a folder of img2dataset, whose resume takes every .json in it for its own."""
    home = label_files.home(folder)
    if any(home.glob("*_stats.json")):
        raise UserError(f"{home}: holds what img2dataset has fetched. Give --output a folder beside it.")


class Output(Protocol):
    """Where labels go.

    Attributes:
      folder: of the output, local or remote.
      job: that fills it.
    """

    folder: str
    job: Job

    def claim(self) -> None:
        """Notes which weights make the labels, so that they are never mixed with others'; raises UserError."""

    def stages(self) -> list[Stage]:
        """Returns what is to be done after the experts."""

    def finish(self) -> None:
        """Makes it complete, when all stages are done; every process does so, one after the other."""


class Files:
    """Label files as in the official repository."""

    def __init__(
        self,
        folder: pathlib.Path,
        source: Any,
        ledger: Ledger | None,
        made_with: Mapping[str, str],
        *,
        shard_size: int,
        empty: bool = False,
        distinct: bool = False,
        official: bool = False,
        kinds: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Args:
        ledger: None to look only.
        made_with: kind -> how its labels are made.
        kinds: as of `Job`.
        distinct: the names of the photos' label files are known to differ.
        official: the official code is to read them too, see official.py.
        """
        self._official = [label_files.path_of(folder, "ocr_detection", "photo").parent] if official else []
        self._folder, self._ledger, self._made_with = folder, ledger, dict(made_with)
        self.folder = str(label_files.home(folder))
        shards = split(len(source), shard_size)
        # What was marked as done without a look at it from there is looked at again.
        marks = {name: f"{how}, official" if official else how for name, how in made_with.items()}
        store = LabelFiles(folder, official)
        self.job = Job(source, store, ledger, shards, marks, distinct=distinct, empty=empty, kinds=kinds)

    def claim(self) -> None:
        with self._ledger.leases.wait("record"):
            label_files.record(self._folder, self._made_with)

    def stages(self) -> list[Stage]:
        return []

    def finish(self) -> None:
        for folder in self._official if "ocr_detection" in self._made_with else ():
            with self._ledger.leases.wait("finish"):
                official.complete(folder)


class Dataset:
    """ArrayRecord shards of photos, texts, and labels: those that the source has and those that are made."""

    def __init__(
        self,
        folder: str,
        source: Any,
        ledger: Ledger | None,
        made_with: Mapping[str, str],
        *,
        shard_size: int,
        empty: bool = False,
        work: pathlib.Path,
        made_from: Mapping[str, Any],
        given: str | None = None,
        threads: int = 4,
        kinds: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Args:
        ledger, made_with, kinds: as of `Files`.
        work: the ledger's folder, for labels on their way.
        made_from: what the source is, for the manifest, as plain JSON.
        given: a folder of label files, from which the source has labels.
        threads: write so many shards at a time.
        """
        self.folder, self._ledger, self._threads = storage.plain(folder), ledger, threads
        self._there = there = build.labels_of(source, given)
        seen = {"names": build.names(source), "data": data_seen.fingerprint(source)}
        seen |= {"label_files": build.label_files_of(source, given)}
        self._plan = build.Plan(
            folder=self.folder,
            name=metadata.identifier(os.path.basename(self.folder.rstrip("/"))),
            split="train",
            experts=labels.select([*there, *made_with]),
            count=len(source),
            shard_size=shard_size,
            max_side=None,
            made_from=dict(made_from) | seen,
            labels=there | dict(made_with),
        )
        self._store = LabelShards(work / LABELS)
        self._work = self._plan.work(None if ledger is None else ledger.leases, prefix=f"{Recording.name}.")
        self.job = Job(
            source,
            self._store,
            ledger,
            split(len(source), shard_size),
            made_with,
            keep=True,
            empty=empty,
            settled=lambda shard: self._work.is_done(shard.index),
            kinds=kinds,
        )

    def check(self) -> None:
        """Raises UserError where the labels would not go with those that are there; writes nothing."""
        for name, how in self._there.items():
            if how not in (None, self._plan.labels[name]):  # where it is not known nobody can tell
                raise UserError(
                    f"{self.folder}: its source has labels of {name} made with {how}, not with "
                    f"{self._plan.labels[name]}. Leave {name} out of --experts."
                )
        build.check_claim(self._plan)

    def claim(self) -> None:
        self.check()
        with self._ledger.leases.wait("record"):
            if build.claimed(self.folder) is None:
                self._store.clear()  # what is there was made for another data set
            build.claim(self._plan)

    def stages(self) -> list[Stage]:
        return [Recording(self.job, self._store, self._plan, self._work, self._threads)]

    def finish(self) -> None:
        with self._ledger.leases.wait("finish"):
            finished = build.finish(self._plan)
            self._store.sweep()
            for kind in (kind for kinds in self.job.kinds.values() for kind in kinds):
                for shard in self.job.shards:  # of one that a killed process wrote they are still there
                    self._store.remove(kind, shard)
        print(f"{self.folder}: {finished.records:,} records in {len(finished.shards):,} shards")
