"""How a program of this package starts: Ctrl-C is one line, garbage looked for rarely, memory lies in huge pages."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import sys
from typing import Any

GARBAGE = 5_000  # objects made between two searches; Python's 700 take a tenth of a start (docs/performance.md)
# Ask for huge pages, and keep what is freed for the next step (GNU C library manual, Memory Allocation Tunables; 2.35).
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824"
SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def stop(*_: Any) -> None:
    """Ends a program that has not begun; `errors.run_main` has Ctrl-C raise KeyboardInterrupt again."""
    os.write(2, b"interrupted: stopped by Ctrl-C while it was starting.\n")
    os._exit(2)


def prepare() -> None:
    """Has a program of this package end in a line where Ctrl-C comes while it imports, and collect garbage rarely.

    And has it start again, as it imports nothing yet, in huge pages.

    On a CPU, XLA takes the memory of a step anew each time, as NumPy does that of a photo, and the kernel hands it out
    page by page: a third of a training step (docs/performance.md). Where Linux gives huge pages on request, glibc
    requests them if told so at its start. $GLIBC_TUNABLES of the user's wins; notebooks and others' programs stay.
    """
    words, told = sys.orig_argv, os.environ.get("GLIBC_TUNABLES", "")
    searching = sys.argv[:1] == ["-m"] and "-m" in words  # for the module of `python -m prismer_jax.train`
    if searching and words[words.index("-m") + 1].split(".")[0] in ("prismer_jax", "tools"):
        gc.set_threshold(GARBAGE)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
        if "hugetlb" not in told and SETTING.is_file() and "[madvise]" in SETTING.read_text():  # a file of Linux
            tunables = ":".join(filter(None, (told, TUNABLES)))
            os.execve(sys.executable, [sys.executable, *words[1:]], {**os.environ, "GLIBC_TUNABLES": tunables})
