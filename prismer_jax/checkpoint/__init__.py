"""Checkpoints through Orbax: asynchronous, whole or absent, restored bit by bit onto any mesh; and exported models.

A checkpoint is a folder named by its step. Orbax writes it under another name and renames it when everything is there,
so that a process killed half-way leaves nothing that looks like a checkpoint. Trees are stored as nested dicts by the
names of their leaves, which is why any process can read them, whatever classes the optimiser's state is made of. Arrays
are stored as bytes with shape and type, and not where they lay: reading executes nothing, and needs no device.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import config as configs
from prismer_jax import sharding, tree
from prismer_jax.checkpoint import arrays, sizes
from prismer_jax.errors import UserError, nearest
from prismer_jax.files import storage

PathLike = str | os.PathLike[str]

logger = logging.getLogger(__name__)

WEIGHTS = "weights"  # the folder of arrays in an export
ITEM = "default"  # and in a step, called as Orbax's CheckpointManager calls it; version 0.1 had none there
DESCRIPTION = "config.json"
_COMMITTED = "_CHECKPOINT_METADATA"  # Orbax writes it before the rename
_METRICS = "metrics.json"
_TRASH = ".deleting-"


class Checkpointer(contextlib.AbstractContextManager):
    """The checkpoints of a run: the newest ones, and the best by a metric.

    Files are written in the background; an error there is raised by the next `save`, `wait` or `close`. Opening a
    folder changes nothing in it: another process may be writing there.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        keep: int = 1,
        best_metric: str | None = None,
        best_mode: str = "max",
        async_: bool = True,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, PathLike] | None = None,
    ) -> None:
        """Opens a folder of checkpoints, which need not exist.

        Args:
          directory: on a file system that all processes share.
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
        self.directory = storage.on_disk(directory).absolute()
        self._keep, self._best_metric, self._best_mode, self._async = keep, best_metric, best_mode, async_
        self._description = None if config is None else (config, files or {})
        self._writer: Any = None
        self._torn: dict[int, str] = {}  # of the steps that were there at first: what is wrong with them, or ""

    def all_steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order; one that was torn later is said, and left out."""
        if not self.directory.is_dir():
            return []
        complete = (p for p in self.directory.iterdir() if p.name.isdigit() and (p / _COMMITTED).exists())
        return sorted(int(p.name) for p in complete if not self._is_torn(int(p.name)))

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
        metrics = self._metrics()
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
                if self._best_metric not in metrics:
                    raise UserError(
                        f"No metric {self._best_metric!r} to choose by. {nearest(self._best_metric, metrics)}"
                    )
                self._note(step, float(metrics[self._best_metric]))
            if step in self.all_steps():
                return
            with jax.transfer_guard("allow"):  # the loop forbids transfers that nobody asked for
                args = ocp.args.Composite(**{ITEM: ocp.args.PyTreeSave(arrays.nested(state))})
                self._writer.save(self.directory / str(step), args=args)
        if not self._async:
            self.wait()

    def restore(self, like: Any, step: int | None = None, partial: bool = False) -> Any:
        """Returns a saved state.

        Args:
          like: the expected tree, of arrays or of ShapeDtypeStructs. Leaves with a sharding arrive with it, on whatever
            mesh; leaves without arrive as NumPy arrays.
          step: default the latest.
          partial: the checkpoint may hold more than `like` does (only the parameters, say).

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
        arrays.compare(folder, saved_shapes(folder), expected, partial)
        values = _read(folder, expected)
        return jax.tree.map(values.__getitem__, tree.names(like))

    def wait(self) -> None:
        """Waits for what is being written, raises its error, and deletes what is no longer kept."""
        if self._writer is None:
            return
        with self._writing():
            self._writer.wait_until_finished()
            self._prune()
            if jax.process_index() == 0:
                sizes.note(self.directory, self.all_steps())

    def close(self) -> None:
        """Calls `wait` and gives threads back."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self.close()

    def _open(self) -> None:
        ocp = arrays.orbax()
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._sweep()
            sizes.note(self.directory, self.all_steps())  # a step that was torn is written again
            for step in (step for step, reason in self._torn.items() if reason):
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
            if self._description is not None:
                _describe(self.directory, *self._description)
        sharding.barrier("opened")
        self._torn = {step: reason for step, reason in self._torn.items() if not reason}
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**{ITEM: arrays.handler()}))

    def _sweep(self) -> None:
        """Deletes what a killed process left behind."""
        for path in self.directory.iterdir():
            if ".orbax-checkpoint-tmp" in path.name or path.name.startswith(_TRASH):
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        steps = self.all_steps()
        keep = {*steps[-self._keep :], self.best_step()}
        if jax.process_index() == 0:
            for step in set(steps) - keep:
                trash = self.directory / f"{_TRASH}{step}"
                os.rename(self.directory / str(step), trash)  # so that a kill leaves no half of a checkpoint
                shutil.rmtree(trash)

    def _is_torn(self, step: int) -> bool:
        if step not in self._torn:
            self._torn[step] = sizes.what_is_torn(self.directory, step)
            if self._torn[step]:
                logger.warning("%s is torn and left out: %s.", self.directory / str(step), self._torn[step])
        return bool(self._torn[step])

    def _metrics(self) -> dict[str, float]:
        return sizes.read_json(self.directory / _METRICS)

    def _note(self, step: int, value: float) -> None:
        if jax.process_index() == 0 and math.isfinite(value):
            metrics = {name: v for name, v in self._metrics().items() if int(name) in self.all_steps()}
            storage.write_json(self.directory / _METRICS, {**metrics, str(step): value}, indent=None)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with arrays.explained(f"Cannot write a checkpoint to {self.directory}"):
                yield
        except UserError:
            if self.directory.is_dir() and jax.process_index() == 0:
                self._sweep()
            raise


def export(
    directory: PathLike,
    variables: Any,
    config: Mapping[str, Any],
    files: Mapping[str, PathLike | bytes] | None = None,
) -> None:
    """Writes a self-contained folder: config.json, the arrays, and copies of files such as the tokenizer's.

    The folder appears, or replaces an older export, when it is complete.

    Args:
      directory: of the export.
      variables: a tree of arrays; all processes must call this with their parts.
      config: what a program needs to use them (model, tokenizer, decoding ...), as JSON. Versions are added.
      files: {name in the folder: file to copy, or its content}.

    Raises:
      UserError: the folder exists and is no export, or cannot be written.
    """
    ocp = arrays.orbax()
    final = storage.on_disk(directory).absolute()
    if final.exists() and not _is_export(final) and (final.is_file() or any(final.iterdir())):
        raise UserError(f"{final} exists and is no exported model; choose another folder or delete it.")
    new, old = _beside(final, "new"), _beside(final, "old")
    main = jax.process_index() == 0
    with arrays.explained(f"Cannot write {final}", new if main else None):
        if main:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            _describe(new, config, files or {})
        sharding.barrier("export")
        with ocp.Checkpointer(arrays.handler(alone=True)) as writer, jax.transfer_guard("allow"):
            writer.save(new / WEIGHTS, args=ocp.args.PyTreeSave(arrays.nested(variables)))
        if main:
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(final, old)  # killed here, `find` knows where to look
            os.rename(new, final)
            shutil.rmtree(old, ignore_errors=True)
        sharding.barrier("exported")


def find(path: PathLike) -> pathlib.Path:
    """Returns the folder that `load_export` reads, given any of: an export; a workdir; its checkpoints; one of these.

    A workdir's export is preferred to its latest checkpoint.

    Raises:
      UserError: there is nothing of the kind.
    """
    path = storage.on_disk(path).absolute()
    for candidate in (path, path / "export"):
        if not candidate.exists() and _is_export(old := _beside(candidate, "old")):
            return old  # a process was killed between the two renames of `export`
        if _is_export(candidate):
            return candidate
    if (path / _COMMITTED).exists():
        return path
    for candidate in (path, path / "checkpoints"):
        if (step := Checkpointer(candidate).latest_step()) is not None:
            return candidate / str(step)
    what = "does not exist" if not path.exists() else "is no folder of that kind"
    raise UserError(
        f"{path} {what}: expected an exported model (config.json and {WEIGHTS}/), or a workdir with export/ or "
        "checkpoints/ in it."
    )


def load_export(path: PathLike, shardings: Callable[[Any], Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads an exported model, or the variables in a checkpoint, which are all but its 'opt' and 'step'.

    Args:
      path: whatever `find` accepts.
      shardings: from the nested dict of ShapeDtypeStructs to that of shardings; None gives NumPy arrays.

    Returns:
      (variables, config): nested dicts. config['folder'] is where the files lie that were exported; it is all there is
      for a checkpoint saved without a config.

    Raises:
      UserError: there is nothing of the kind, or it cannot be read.
    """
    config, folder = description(path), find(path)
    shapes = {name: x for name, x in saved_shapes(folder).items() if _is_variable(name)}
    if shardings is not None:
        places = tree.flatten(shardings(tree.unflatten(shapes)))
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[n]) for n, x in shapes.items()}
    return tree.unflatten(_read(folder, shapes)), config


def description(path: PathLike) -> dict[str, Any]:
    """Returns the config that lies beside an exported model or a checkpoint, and its 'folder'; see `load_export`."""
    folder = find(path)
    home = folder if _is_export(folder) else folder.parent
    try:
        config = json.loads((home / DESCRIPTION).read_text()) if (home / DESCRIPTION).exists() else {}
    except ValueError:
        raise UserError(f"{home / DESCRIPTION} is damaged: it is not JSON. Export the model again.") from None
    return {**config, "folder": str(home)}


def load_into(
    state: Mapping[str, Any],
    path: PathLike,
    fresh: Sequence[str] = (),
    resize: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], Any]] | None = None,
    optional: Sequence[str] = (),
    pack: Mapping[str, Callable[[np.ndarray], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Returns the variables of a state with the values of an exported model, or of another run's checkpoint.

    Numbers with a fraction may be of another type in the file; they are converted.

    Args:
      state: initialised; its variables are everything but 'opt' and 'step'. Every leaf returned is placed like its own.
      path: whatever `find` accepts.
      fresh: regexes of whole names ('params/encoder/stems/.*'): what they match keeps its initial values and need not
        be in the file, or is in the file and need not be in the state.
      resize: {name: function of (saved array, expected shape)} of what may have another shape in the file, as position
        embeddings of another resolution have (see models.RESIZE).
      optional: regexes of names that keep their initial values if the file has none of them.
      pack: {name: function of the saved array -> {part: array}} of what the state may hold in parts, 'name/part'.

    Raises:
      UserError: there is nothing of the kind, a regex matches nothing, or the file and the state differ elsewhere.
    """
    folder = find(path)
    ours = {name: leaf for name, leaf in tree.flatten(state).items() if _is_variable(name)}
    saved = {name: shape for name, shape in saved_shapes(folder).items() if _is_variable(name)}
    skipped = tree.first_match([*fresh, *optional], {**ours, **saved}, "init_fresh")
    if any(matched >= len(fresh) and name in saved for name, matched in skipped.items()):
        skipped = tree.first_match(fresh, {**ours, **saved}, "init_fresh")
    expected = {name: arrays.abstract(leaf) for name, leaf in ours.items() if name not in skipped}
    other = [n for n in resize or {} if n in expected and n in saved and saved[n].shape != expected[n].shape]
    as_saved = {name: jax.ShapeDtypeStruct(saved[name].shape, expected[name].dtype) for name in other}
    whole = {name: saved.pop(name) for name in pack or {} if name in saved}
    for name, x in whole.items():
        saved |= {f"{name}/{part}": made for part, made in jax.eval_shape(pack[name], x).items()}
    arrays.compare(folder, {n: x for n, x in saved.items() if n not in skipped}, {**expected, **as_saved}, exact=False)
    read = {name: x for name, x in {**expected, **as_saved}.items() if name.rpartition("/")[0] not in whole}
    values = {**tree.flatten(state), **_read(folder, read)}
    with jax.transfer_guard("allow"):
        for name in other:
            logger.warning("%s: resized from %s to %s.", name, [*saved[name].shape], [*expected[name].shape])
            values[name] = jax.device_put(resize[name](values[name], expected[name].shape), expected[name].sharding)
        for name, x in whole.items():  # one after the other: the file may be larger than the memory
            for part, made in jax.jit(pack[name])(_read(folder, {name: x})[name]).items():
                values[f"{name}/{part}"] = jax.device_put(made, expected[f"{name}/{part}"].sharding)
    variables = {key: part for key, part in state.items() if _is_variable(key)}
    return jax.tree.map(values.__getitem__, tree.names(variables))


def saved_shapes(folder: PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {name: shape and type} of a step of a Checkpointer, an export, or its folder of arrays."""
    with arrays.readable(folder):
        return arrays.shapes_in(_arrays(pathlib.Path(folder)))


def _read(folder: pathlib.Path, expected: arrays.Shapes) -> dict[str, Any]:
    with arrays.readable(folder):
        return arrays.read(_arrays(folder), expected)


def _describe(folder: pathlib.Path, config: Mapping[str, Any], files: Mapping[str, PathLike | bytes]) -> None:
    for name, source in files.items():
        if pathlib.Path(name).name != name:
            raise ValueError(f"{name!r} must be a plain file name")
        if isinstance(source, bytes):
            (folder / name).write_bytes(source)
        else:
            shutil.copyfile(source, folder / name)
    storage.write_json(folder / DESCRIPTION, {**config, "versions": configs.provenance()["packages"]})


def _arrays(folder: pathlib.Path) -> pathlib.Path:
    """Returns where the arrays of an export or a step lie."""
    inside = folder / (WEIGHTS if _is_export(folder) else ITEM)
    return inside if inside.is_dir() else folder


def _is_variable(name: str) -> bool:
    return re.match(r"(opt|step|params/targets)(/|$)", name) is None  # the heads of training.targets stay behind


def _is_export(folder: pathlib.Path) -> bool:
    return (folder / DESCRIPTION).is_file() and (folder / WEIGHTS).is_dir()


def _beside(folder: pathlib.Path, what: str) -> pathlib.Path:
    return folder.with_name(f".{folder.name}.{what}")
