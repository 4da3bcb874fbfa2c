"""Builds the data set of scenes: workers render, this process writes what they send, in the scenes' order.

The shards are thus the same whatever the number of workers. TFDS writes into a temporary folder that is renamed when
all is there, so an interrupted build leaves nothing that could be taken for a data set; a lock makes a second process
that wants the same data set wait for the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from prismer_jax.datasets.scenes import workers as scenes_workers
from prismer_jax.datasets.scenes.generator import VERSION, Settings
from prismer_jax.errors import UserError
from prismer_jax.files import progress
from prismer_jax.labels import PAPER
from prismer_jax.shards import records


class Scenes(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of one split with one size, count and seed."""

    name = "scenes"
    VERSION = tfds.core.Version(VERSION)
    code_path = None  # nothing is downloaded; TFDS would look for checksums with a package that it does not require

    def __init__(self, settings: Settings, **kwargs: Any):
        self._settings = settings
        super().__init__(config=tfds.core.BuilderConfig(name=settings.name), file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Without shuffling record i is scene i; the loader shuffles.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered solids and signs with exact expert labels, captions and questions.",
            features=records.features(PAPER),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._settings.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, arguments in enumerate(_progress(scenes_workers.render(self._settings), self._settings)):
            yield index, records.encode(**arguments)


def build(settings: Settings, folder: pathlib.Path) -> None:
    """Builds the data set at `folder` (data_dir/scenes/<settings>/<version>), or waits until another process has.

    Raises:
      UserError: the disk has no space for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / "lock"):
        if folder.exists():
            return
        for leftover in folder.parent.glob("incomplete.*"):  # of a build that was killed
            shutil.rmtree(leftover)
        needed = settings.count * (12_000 + settings.size**2)  # measured: 12 kB at 96 pixels, 35 kB at 224
        if (free := shutil.disk_usage(folder.parent).free) < 2 * needed:
            raise UserError(f"{folder}: {2 * needed >> 20} MiB are needed and {free >> 20} free. Set PRISMER_DATA_DIR.")
        with _quiet():
            Scenes(settings, data_dir=folder.parent.parent.parent).download_and_prepare()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's own messages about downloads and splits: the progress below says it better."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Held by one process at a time; the system releases it when the process ends, however it does."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that builds {path.parent}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _progress(items: Iterator[dict[str, Any]], settings: Settings) -> Iterator[dict[str, Any]]:
    what = f"{settings.count} scenes ({settings.split}, {settings.size} px)"
    with progress.bar(f"Rendering {what}", settings.count, unit="scenes") as advance:
        for item in items:
            yield item
            advance()
    print(f"Rendered {what}", file=sys.stderr)
