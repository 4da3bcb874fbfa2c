"""What a run says about itself: metrics.jsonl, metrics.csv, TensorBoard, Weights & Biases, and a progress bar.

metrics.jsonl is the record: a line a logged step, numbers in full. The other files follow from it.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import progress, storage

Value = float | int


class Writer(contextlib.AbstractContextManager):
    """Writes scalars to a workdir, each `write` at once, so that a kill loses nothing but a line half written."""

    def __init__(
        self,
        workdir: storage.PathLike,
        *,
        first_step: int = 0,
        wandb: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        """Opens the files.

        Args:
          workdir: a folder, made if need be.
          first_step: the step from which the run resumes; what was logged after it will be logged again and is dropped.
            0 starts anew.
          wandb: keyword arguments of wandb.init (project, name, mode ...), or None for no Weights & Biases. A resumed
            run continues the same one.
          config: shown by Weights & Biases.
          enabled: False in all processes but one; then nothing is written.

        Raises:
          UserError: wandb is wanted but not installed, or the folder cannot be written.
        """
        self._enabled = enabled
        if not enabled:
            return
        workdir = storage.on_disk(workdir)
        self._jsonl, self._csv = workdir / "metrics.jsonl", workdir / "metrics.csv"
        self._columns: list[str] = ["step"]
        with self._explained():
            workdir.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(line) + "\n" for line in read(workdir) if first_step and line["step"] <= first_step]
            storage.write(self._jsonl, "".join(lines))
            self._rewrite_csv()
            self._events = EventFile(workdir / "tensorboard", first_step)
        self._wandb = None
        if wandb is not None:
            self._wandb = importlib.import_module("prismer_jax.files.wandb").start(workdir, wandb, config, first_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes {name: number} of a step; numbers may be NumPy's or JAX's scalars.

        In metrics.jsonl a float is written so that reading gives the very same float; what is not finite is NaN,
        Infinity or -Infinity, as Python's json has it.
        """
        if not self._enabled:
            return
        line = {"step": int(step), **{k: v if type(v) is int else float(v) for k, v in values.items()}}
        with self._explained():
            with self._jsonl.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if set(line) <= set(self._columns):
                with self._csv.open("a", newline="") as file:
                    csv.DictWriter(file, self._columns).writerow(line)
            else:
                self._rewrite_csv()
            self._events.write(step, {name: value for name, value in line.items() if name != "step"})
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def __exit__(self, *_: Any) -> None:
        if self._enabled:
            self._events.close()
            if self._wandb is not None:
                self._wandb.finish()

    def _rewrite_csv(self) -> None:
        lines = read(self._jsonl.parent)
        self._columns = list(dict.fromkeys(["step", *(name for line in lines for name in line)]))
        with storage.replacing(self._csv) as name, open(name, "w", newline="") as file:
            table = csv.DictWriter(file, self._columns)
            table.writeheader()
            table.writerows(lines)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"Cannot write metrics to {self._jsonl.parent}: {error.strerror}.") from error


def read(workdir: storage.PathLike) -> list[dict[str, Value]]:
    """Returns the lines of WORKDIR/metrics.jsonl, [] if there is none; a line torn by a kill is left out."""
    file = pathlib.Path(workdir) / "metrics.jsonl"
    lines = []
    for text in file.read_text(errors="replace").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


class EventFile:
    """A TensorBoard event file of scalars, by tensorboardX, whose `SummaryWriter` would write later, in a thread."""

    def __init__(self, folder: pathlib.Path, first_step: int = 0) -> None:
        """Opens a new file; what older files in the folder hold after first_step, TensorBoard will no longer show."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX 2.6.5 names a file by the second: a run resumed within it would overwrite the file of the first.
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}.{os.getpid()}")
        # Events of this or later steps in older files are of a run that was cut off.
        self._put(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Writes {tag: number} of a step."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._put(step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]))

    def close(self) -> None:
        self._file.close()

    def _put(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), step=step, **what))
        self._file.flush()


class Progress(progress.Bar):
    """The bar of a training, on stdout; and the throughput of training, and of nothing else.

    with Progress(total_steps, first_step) as progress:
        for ...:
            progress.step(images=64, tokens=2048)
            rates = progress.show(loss=loss)  # every so many steps; {"images_per_second": ..., ...}
            with progress.paused("evaluating"):
                ...
    """

    def __init__(self, total: int, first_step: int = 0, **options: Any) -> None:
        """Makes it; nothing is shown before `with`.

        Args:
          total: steps of the whole training.
          first_step: steps done before, by the run that is resumed.
          **options: of `files.progress.Bar`; by default there is a line every ten seconds, on stdout.
        """
        options = {"every": 10.0, "stream": sys.stdout, **options}
        super().__init__("training", total, done=first_step, ends=True, **options)
        self._counts: dict[str, float] = {}
        self._window_start: float | None = None  # set by the first step, which compiled

    def step(self, **amounts: float) -> None:
        """Counts a step and what it processed: images=64, tokens=2048. The first, which compiled, starts the clock."""
        self.advance()
        if self._window_start is None:
            self._window_start = self._working()
            return
        for name, amount in {"steps": 1, **amounts}.items():
            self._counts[name] = self._counts.get(name, 0) + amount

    def show(self, **values: float) -> dict[str, float]:
        """Shows values (loss=...) beside the rates; returns {'images_per_second': ...} since the last call."""
        now = self._working()
        seconds = 0.0 if self._window_start is None else now - self._window_start
        rates = {f"{name}_per_second": count / seconds for name, count in self._counts.items()} if seconds > 0 else {}
        self._counts, self._window_start = {}, now
        words = [f"{name} {value:.4g}" for name, value in values.items()]
        words += [f"{x:,.0f} {n}/s" for n in ("images", "tokens") if (x := rates.get(f"{n}_per_second"))]
        if (left := self.seconds_left()) is not None:
            end = datetime.datetime.now() + datetime.timedelta(seconds=left)
            words.append(f"{progress.duration(left)} left, until {end:%H:%M}")
        super().show(words, "  ".join([f"step {self.done}/{self.total}", *words]))
        return rates

    def paused(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Leaves the time inside out of all rates, and says what is done in it."""
        if not self._live:
            self.say(f"step {self.done}/{self.total}  {what}")
        return super().paused(what)
