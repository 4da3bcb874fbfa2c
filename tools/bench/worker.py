"""A worker process of a benchmark, which does one round of work whenever it is told to.

It says 'ready', then the seconds of each round, and at the end of its input a number, its peak memory, say, and perhaps
a second one: XLA's temporary memory. Two codes that are compared work in turn, so that a noisy machine is as noisy for
both, a few rounds each: the first after a pause also brings back memory that a machine takes from a process that waits.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from prismer_jax import config, programs, runtime, sharding
from prismer_jax.errors import UserError
from prismer_jax.training.step import Step, make_step

IN_A_ROW = 3  # rounds of one worker before it is the other's turn


class Row(NamedTuple):
    """A line of a table: what is measured, how many of these a round does, and the least ratio of ours to the original.

    `temporaries` is the largest ratio of what XLA counts as temporary memory, where both sides say that.
    """

    title: str
    count: int
    target: float
    temporaries: float = 1.0


class Worker:
    """A process that works for one round when it is told to.

    Attributes:
      seconds: that each round took, as the process says.
      last: the number that it says at its end.
      temporaries: bytes that XLA counts beside arguments and results, where the process says that behind it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # In a session of its own, so that Ctrl-C reaches the bench alone, which then ends it.
        self.process = subprocess.Popen(command, env=as_users_have_it(), start_new_session=True, **pipes)
        self.seconds: list[float] = []
        self.last = 0
        self.temporaries: int | None = None

    @functools.cached_property
    def ready(self) -> bool:
        """Whether it is set up, which is waited for."""
        return self.process.stdout.readline().strip() == "ready"

    def step(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{' '.join(self.process.args)}: ended with status {self.process.wait()}; see above.")
        self.seconds.append(float(line))

    def close(self) -> None:
        rest, _ = self.process.communicate()
        numbers = [int(number) for number in rest.split()]
        self.last = numbers[0] if numbers else 0
        self.temporaries = numbers[1] if len(numbers) > 1 else None


def as_users_have_it() -> dict[str, str]:
    """Returns this environment without what `programs.prepare` has added: each code starts as its users start it."""
    told = os.environ.get("GLIBC_TUNABLES", "").removesuffix(programs.TUNABLES).removesuffix(":")
    rest = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    return rest | ({"GLIBC_TUNABLES": told} if told else {})


@contextlib.contextmanager
def worker(command: Sequence[str]) -> Iterator[Worker]:
    """Starts a worker that is ended when the block ends."""
    process = Worker(command)
    try:
        yield process
    except BaseException:
        process.process.kill()
        process.process.communicate()
        raise
    process.close()


def one_core(command: Sequence[str]) -> list[str]:
    """Returns a command that runs on the first core alone; libraries start no more threads than that."""
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", code, *command]


def in_turn(commands: Sequence[Sequence[str]], seconds: float) -> list[Worker]:
    """Runs workers in turn, and returns them, ended, with the seconds of their rounds and what they say at the end."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(command)) for command in commands]
        for one in workers:
            if not one.ready:
                raise UserError(f"{' '.join(one.process.args)}: ended before its first round; see above.")
            one.step()  # compiles, or fills caches
            one.seconds.clear()
        start = time.monotonic()
        while len(workers[0].seconds) <= IN_A_ROW or time.monotonic() - start < seconds:
            for one in workers:
                for _ in range(IN_A_ROW):
                    one.step()
    return workers


def show(title: str, values: Sequence[float], target: float | None, less: bool = False) -> None:
    """Prints a line of a table; what is compared with no original has no target."""
    line = f"{title:<54}{values[0]:>9.2f}"
    if len(values) == 1:
        print(line, flush=True)
        return
    ratio = values[0] / values[1]
    aim = "" if target is None else f"{'<' if less else '>':>4}{target:>4.1f}"
    print(f"{line}{values[1]:>10.2f}{ratio:>7.2f}{aim}", flush=True)


def beside(commands: Sequence[Sequence[str]], seconds: float) -> list[Worker]:
    """`in_turn`, but the first alone where the second cannot do this work; why is said on stderr."""
    try:
        return in_turn(commands, seconds)
    except UserError as error:
        if len(commands) == 1:
            raise
        print(f"ours alone: {error}", file=sys.stderr, flush=True)
        return in_turn(commands[:1], seconds)


def our_command(bench: types.ModuleType, *words: str, checkout: pathlib.Path | None = None) -> list[str]:
    """Returns the command of our worker, or of the one of another checkout of this project."""
    if checkout is None:
        return [sys.executable, "-m", bench.__spec__.name, *words]
    # Without -P the folder that it is started in would come first.
    return ["env", f"PYTHONPATH={checkout.resolve()}", sys.executable, "-P", "-m", bench.__spec__.name, *words]


def their_command(python: str | pathlib.Path, bench: types.ModuleType, row: str, settings: pathlib.Path) -> list[str]:
    file = pathlib.Path(bench.__file__)
    return [str(python), str(file.parent / "reference" / f"run_{file.name}"), row, str(settings)]


def training_step(cfg: config.Section, batch_size: int) -> Step:
    """Returns the training step of a config on all devices, as `train` has it; nothing may have used them before."""
    runtime.use_xla_sums()
    durations = dict(batch_size=batch_size, num_examples=batch_size, total_steps=10_000)
    return make_step(cfg, None, sharding.make_mesh(), durations)


def steps_of(made: Step, batch: Any) -> Callable[[], None]:
    """Returns a function that takes one training step after the other, each on the same batch of host arrays.

    Its attribute `temporaries` is XLA's count of the step's temporary memory, in bytes; `jaxpr()` is what it computes.
    """
    batch = jax.device_put(batch, sharding.batch_sharding(made.mesh))
    update, state = made.compile(batch), made.init(0)

    def step() -> None:
        nonlocal state
        state, measured = update(state, batch)
        jax.block_until_ready(measured)

    def jaxpr() -> Any:
        with jax.set_mesh(made.mesh):
            return made.update.trace(made.state, batch).jaxpr.jaxpr

    step.temporaries, step.jaxpr, step.turns = update.memory_analysis().temp_size_in_bytes, jaxpr, 1
    return step


class Work(NamedTuple):
    """What is done in a round: a function of JAX's, and its arguments.

    `turns` are those of its loops that end when all texts have ended, which here they do not before the last column.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    turns: int = 1

    def __call__(self) -> Any:
        return jax.block_until_ready(self.function(*self.arguments))

    def jaxpr(self) -> Any:
        """Returns what it computes."""
        return jax.make_jaxpr(self.function)(*self.arguments).jaxpr


def compare(
    heading: str,
    bench: types.ModuleType,
    python: str | pathlib.Path | None,
    *,
    seconds: float = 10,
    rows: Sequence[str] = (),
    alone: bool = False,
    more: Mapping[str, Any] | None = None,
    against: pathlib.Path | None = None,
    lacking: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Prints a table of how many a second each code does of each row, the fastest round counts, and its peak memory.

    Args:
      bench: has ROWS and `settings()`, which both sides read; run with a row's name it is our worker, as is theirs
        reference/run_NAME.py.
      python: an interpreter with PyTorch and transformers; without it ours alone is measured.
      seconds: how long each row is measured at least; two turns of each code in any case.
      rows: names of ROWS, all by default.
      alone: give each code one core, and count the processor's time.
      more: what the settings of their side have besides.
      against: a checkout of this project that is measured in place of the original.
      lacking: rows that the original has not: ours alone is measured.

    Returns:
      The rows, each with what is measured, the target of the ratio to the original, for both sides the rate, the peak
      memory in gigabytes and the seconds of every round; and, where there are two, the ratios of the fastest rounds, of
      the median ones and of the peaks; where all say it, XLA's temporary memory of each, in gigabytes.

    Raises:
      UserError: a worker ends early.
    """
    table = []
    other = "against" if against else "original"
    print(f"{heading:<54}{'ours':>9}{other:>10}{'ratio':>7}" + ("" if against else f"{'target':>8}"), flush=True)
    with tempfile.TemporaryDirectory(prefix="prismer_jax.bench.") as folder:
        path = pathlib.Path(folder, "settings.json")
        path.write_text(json.dumps({**bench.settings(), **(more or {})}))
        for name in rows or bench.ROWS:
            commands = [our_command(bench, name)]
            if against is not None:
                commands.append(our_command(bench, name, checkout=against))
            elif python and name not in lacking:
                commands.append(their_command(python, bench, name, path))
            workers = in_turn([one_core(x) if alone else x for x in commands], seconds)
            row, rounds = bench.ROWS[name], [one.seconds for one in workers]
            target, memory, temporary = (None,) * 3 if against else (row.target, 1.0, row.temporaries)
            rates, peaks = [row.count / min(times) for times in rounds], [one.last / 1e9 for one in workers]
            show(row.title, rates, target)
            show(f"peak memory of {name}, GB", peaks, memory, less=True)
            table.append(dict(row=name, title=row.title, target=target))
            for side, rate, peak, times in zip(("ours", other), rates, peaks, rounds, strict=False):
                table[-1][side] = dict(a_second=rate, peak_gb=peak, seconds=times)
            if len(rounds) == 2:
                ours, theirs = map(statistics.median, rounds)
                ratios = dict(ratio=rates[0] / rates[1], ratio_of_medians=theirs / ours)
                table[-1] |= ratios | dict(ratio_of_memory=peaks[0] / peaks[1])
            temporaries = [one.temporaries / 1e9 for one in workers if one.temporaries is not None]
            if len(temporaries) == len(workers):
                show(f"XLA's temporary memory of {name}, GB", temporaries, temporary, less=True)
                table[-1]["temporaries_gb"] = temporaries
    return table
