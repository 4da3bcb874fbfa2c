"""The checkpoints of a run, each in a folder that is named by its step: which are there, are kept, are torn.

What differs between a disk and a bucket is in disk.py and buckets.py.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from prismer_jax import sharding, tree
from prismer_jax.checkpoint import arrays, disk, layout
from prismer_jax.errors import UserError, nearest
from prismer_jax.files import storage

_METRICS = "metrics.json"

logger = logging.getLogger(__name__)


def backend(path: pathlib.Path) -> types.ModuleType:
    """Returns the module that reads and writes folders there: disk.py, or buckets.py, imported when there is one."""
    return importlib.import_module("prismer_jax.checkpoint.buckets") if storage.is_remote(path) else disk


class Checkpointer(contextlib.AbstractContextManager):
    """The checkpoints of a run: the newest ones, and the best by a metric.

    Files are written in the background; an error there is raised by the next `save`, `wait` or `close`. Opening a
    folder changes nothing in it: another process may be writing there.
    """

    def __init__(
        self,
        directory: storage.PathLike,
        *,
        keep: int = 1,
        best_metric: str | None = None,
        best_mode: str = "max",
        async_: bool = True,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, storage.PathLike] | None = None,
    ) -> None:
        """Opens a folder of checkpoints, which need not exist.

        Args:
          directory: on a file system that all processes share, or in a bucket: gs://.
          keep: how many of the newest are kept; one more may be there until the next `save`, `wait` or `close`.
          best_metric: the checkpoint that is best by this name in `save`'s metrics is kept too.
          best_mode: 'max' or 'min'.
          async_: write in the background.
          config, files: as in `export`; with them `load_export` reads a checkpoint of a run that is not finished.
        """
        if best_mode not in ("max", "min"):
            raise UserError(f"best_mode is 'max' or 'min', not {best_mode!r}.")
        if keep < 1:
            raise UserError(f"keep must be at least 1 checkpoint, not {keep}.")
        self.directory = storage.folder(directory)
        self._steps = backend(self.directory)
        self._keep, self._best_metric, self._best_mode, self._async = keep, best_metric, best_mode, async_
        self._description = None if config is None else (config, files or {})
        self._writer: Any = None
        self._torn: dict[int, str] = {}  # of the steps that were there at first: what is wrong with them, or ""

    def all_steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order; one that was torn later is said, and left out."""
        return sorted(step for step in self._steps.complete(self.directory) if not self._is_torn(step))

    def latest_step(self) -> int | None:
        """Returns the newest complete checkpoint's step, or None if there never was one.

        Raises:
          UserError: there are some, and all are torn: a run must not begin anew in silence.
        """
        steps, torn = self.all_steps(), [reason for reason in self._torn.values() if reason]
        if torn and not steps:
            raise UserError(
                f"All checkpoints in {self.directory} are torn: {torn[0]}. Delete them to begin anew, and keep more of "
                "them: config.checkpoint.keep=2."
            )
        return max(steps, default=None)

    def best_step(self) -> int | None:
        """Returns the step that is best by the metric (the later of equals), or None if none has a finite one."""
        metrics = layout.read_json(self.directory / _METRICS)
        scores = {step: metrics[str(step)] for step in self.all_steps() if str(step) in metrics}
        sign = 1 if self._best_mode == "max" else -1
        return max(scores, key=lambda step: (sign * scores[step], step), default=None)

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state; returns as soon as the arrays may be overwritten or donated.

        Args:
          step: its name. A step that is already saved is not written again, only its metric noted.
          state: a tree of arrays, none of them empty.
          metrics: with best_metric among them, if a best checkpoint is to be kept.

        Raises:
          UserError: this or the previous checkpoint cannot be written (full disk, no permission); no half is left.
        """
        ocp = arrays.orbax()
        self.wait()
        with self._writing():
            if self._writer is None:
                self._open()
            if metrics is not None and self._best_metric is not None:
                self._note_metric(step, metrics)
            if step in self.all_steps():
                return
            with jax.transfer_guard("allow"):  # the loop forbids transfers that nobody asked for
                args = ocp.args.Composite(**{layout.ITEM: ocp.args.PyTreeSave(arrays.nested(state))})
                self._writer.save(self.directory / str(step), args=args)
        if not self._async:
            self.wait()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Returns a saved state.

        Args:
          like: the expected tree, of arrays or of ShapeDtypeStructs. Leaves with a sharding arrive with it, on whatever
            mesh; leaves without arrive as NumPy arrays.
          step: default the latest.

        Raises:
          UserError: there is no such checkpoint, it cannot be read, or it does not fit `like`; the message lists how.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None or step not in self.all_steps():
            which = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"No {which} in {self.directory}; complete ones: {self.all_steps() or 'none'}.")
        folder = self.directory / str(step)
        expected = {name: arrays.abstract(leaf) for name, leaf in tree.flatten(like).items()}
        arrays.compare(folder, layout.saved_shapes(folder), expected)
        values = layout.read(folder, expected)
        return jax.tree.map(values.__getitem__, tree.names(like))

    def wait(self) -> None:
        """Waits for what is being written, raises its error, and deletes what is no longer kept."""
        if self._writer is None:
            return
        with self._writing():
            self._writer.wait_until_finished()
            self._prune()
            if jax.process_index() == 0:
                self._steps.note(self.directory, self.all_steps())

    def close(self) -> None:
        """Calls `wait` and gives threads back."""
        try:
            self.wait()
        finally:
            writer, self._writer = self._writer, None
            with contextlib.suppress(Exception):  # `wait` has said it
                writer and writer.close()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        # Of two errors the first is the one to report.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self.close()

    def _open(self) -> None:
        ocp = arrays.orbax()
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._steps.sweep(self.directory)
            self._steps.note(self.directory, self.all_steps())  # a step that was torn is written again
            for step in (step for step, reason in self._torn.items() if reason):
                self._steps.delete(self.directory, step)
            if self._description is not None:
                layout.describe(self.directory, *self._description)
        sharding.barrier("opened")
        self._torn = {step: reason for step, reason in self._torn.items() if not reason}
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**{layout.ITEM: arrays.handler()}))

    def _note_metric(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metric of this step, unless it is NaN or infinite, beside those of the steps that are there."""
        best, file = self._best_metric, self.directory / _METRICS
        if best not in metrics:
            raise UserError(f"No metric {best!r} to choose by. {nearest(best, metrics)}")
        value = float(metrics[best])
        if jax.process_index() == 0 and math.isfinite(value):
            noted, steps = layout.read_json(file), [str(step) for step in self.all_steps()]
            scores = {k: v for k, v in noted.items() if k in steps and noted.get("metric", best) == best}
            storage.write_json(file, {"metric": best, **scores, str(step): value}, indent=None)

    def _prune(self) -> None:
        steps = self.all_steps()
        keep = {*steps[-self._keep :], self.best_step()}
        if jax.process_index() == 0:
            for step in set(steps) - keep:
                self._steps.delete(self.directory, step)

    def _is_torn(self, step: int) -> bool:
        if step not in self._torn:
            self._torn[step] = self._steps.what_is_torn(self.directory, step)
            if self._torn[step]:
                logger.warning("%s is torn and left out: %s.", self.directory / str(step), self._torn[step])
        return bool(self._torn[step])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with arrays.explained(f"Cannot write a checkpoint to {self.directory}"):
                yield
        except UserError:
            if self.directory.is_dir() and jax.process_index() == 0:
                self._steps.sweep(self.directory)
            raise
