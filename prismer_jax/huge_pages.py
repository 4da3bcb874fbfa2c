"""Programs whose memory lies in huge pages, which a kernel hands out 512 at a time."""

from __future__ import annotations

import os
import pathlib
import sys

TUNABLE = "glibc.malloc.hugetlb=1"  # ask for huge pages (GNU C library manual, Memory Allocation Tunables; since 2.35)
SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def adopt() -> None:
    """Starts a program of this package again, before it has imported anything, with memory in huge pages.

    XLA allocates the temporaries of a step anew each time on a CPU, as NumPy does with photos, and the kernel gives
    them to it page by page: of a training step of the quickstart this took a third (docs/performance.md). Where Linux
    gives huge pages to those who ask, as most distributions set it, glibc asks if it is told so when it starts. What
    the user says in $GLIBC_TUNABLES wins; notebooks, and programs of others, are left as they are.
    """
    words, told = sys.orig_argv, os.environ.get("GLIBC_TUNABLES", "")
    searching = sys.argv[:1] == ["-m"] and "-m" in words  # for the module of `python -m prismer_jax.train`
    ours = searching and words[words.index("-m") + 1].split(".")[0] in ("prismer_jax", "tools")
    if ours and "hugetlb" not in told and _on_request():
        tunables = ":".join(filter(None, (told, TUNABLE)))
        os.execve(sys.executable, [sys.executable, *words[1:]], {**os.environ, "GLIBC_TUNABLES": tunables})


def _on_request() -> bool:
    try:
        return "[madvise]" in SETTING.read_text()
    except OSError:  # another system, or a kernel without them
        return False
