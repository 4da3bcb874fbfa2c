"""Errors that a user can cause, and how a program reports them: one clear line on stderr, exit status 2."""

from __future__ import annotations

import atexit
import difflib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from prismer_jax import programs

T = TypeVar("T")


class UserError(Exception):
    """Bad usage or bad input: the message is one line that names the file or value and the remedy."""

    def _render_traceback_(self) -> list[str]:  # what a notebook shows, without the code that it came through
        return [f"{type(self).__name__}: {self}"]


class BadSample(UserError):
    """One sample cannot be used (unreadable image, label map of another size, empty caption ...).

    In training the loader counts it and takes another sample in its place; where data are prepared it is left out and
    counted under its reason (files/dropped.py); elsewhere it is a UserError like any other.

    Args:
      message: as of a UserError.
      reason: of which kind it is, in a few words that are the same for all samples of the kind.
    """

    def __init__(self, message: str, reason: str = "unusable sample") -> None:
        super().__init__(message)
        self.reason = reason


class Stopped(KeyboardInterrupt):
    """Ctrl-C came, or a notebook's "interrupt"; the message says what is saved."""

    _render_traceback_ = UserError._render_traceback_


class Preempted(Stopped):
    """SIGTERM came, and what was done is saved: the same command goes on from there."""

    STATUS = 75  # of the process, the EX_TEMPFAIL of sysexits.h: start it again


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' for the closest valid name, or the list of all valid names."""
    choices = sorted(map(str, choices))
    if close := difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5):
        return f"Did you mean {close[0]!r}?"
    return f"Valid names: {', '.join(choices) or 'none'}."


def choose(kind: str, name: str, choices: Mapping[str, T] | Collection[T]) -> T:
    """Returns what a table has under the name, or the name itself where the choices are names alone.

    Raises:
      UserError: it is none of them; the message says the nearest valid one.
    """
    if name not in choices:
        raise UserError(f"Unknown {kind} {name!r}. {nearest(name, choices)}")
    return choices[name] if isinstance(choices, Mapping) else name


def run_main(main: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Runs a command-line main: a UserError, a full disk or Ctrl-C becomes one line on stderr and exit status 2.

    The status of one that was preempted, and saved, is Preempted.STATUS.
    """
    if signal.getsignal(signal.SIGINT) is programs.stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(*args, **kwargs)
    except UserError as error:
        sys.exit(_fail(f"error: {error}"))
    except KeyboardInterrupt as error:
        preempted = isinstance(error, Preempted)
        said = "interrupted: stopped by Ctrl-C; what was saved before stays valid."
        status = _fail(f"preempted: {error}" if preempted else said, Preempted.STATUS if preempted else 2)
        if main.__module__ == "__main__":  # and not one that a test, say, has called
            _INTERRUPTED.append(status)
        sys.exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where Python flushes what is left
        sys.exit(_fail("error: the reader of this program's output has ended; what was written to files stays."))
    except OSError as error:
        if error.filename is None and error.errno is None:  # not about a file: a bug, which wants its traceback
            raise
        where = f" {error.filename}:" if error.filename else ""
        sys.exit(_fail(f"error:{where} {error.strerror}. Check that the path exists, is readable and has free space."))


TOLD: list[Callable[[str], None]] = []  # who else is to hear why this program fails: sharding/processes.py
_INTERRUPTED: list[int] = []  # the status of a program that a signal ended


@atexit.register  # at the import of this module, so that it comes after what others have registered
def _leave() -> None:
    """Ends an interrupted program before Python takes down an interpreter that threads of XLA, compiling, still use."""
    if _INTERRUPTED:
        sys.stdout.flush()
        os._exit(_INTERRUPTED[0])


def as_installed(text: str) -> str:
    """Returns the text with commands as they are typed here: what a checkout has as `tools`, a wheel has as its own."""
    from_wheel = pathlib.Path(__file__).with_name("tools").is_dir()  # setup.py
    return text.replace("python -m tools.", "python -m prismer_jax.tools.") if from_wheel else text


def _fail(line: str, status: int = 2) -> int:
    line = " ".join(as_installed(line).split())
    print(line, file=sys.stderr, flush=True)
    for tell in TOLD if status == 2 else ():  # where one process is preempted all are
        tell(line)
    return status
