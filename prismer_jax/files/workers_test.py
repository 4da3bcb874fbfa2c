import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files import workers


def square(value: int) -> int:
    return value * value


def die(value: int) -> int:
    os._exit(3)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order(processes):
    with workers.ordered_map(square, range(20), processes) as results:
        assert list(results) == [value * value for value in range(20)]


class Large:
    """A function with much behind it: counts how often it is sent to another process."""

    sent = 0

    def __call__(self, value: int) -> int:
        return value * value

    def __getstate__(self) -> dict:
        Large.sent += 1
        return {}


def test_a_process_gets_the_function_once_and_not_with_each_item(monkeypatch):
    monkeypatch.setattr(workers, "context", lambda: multiprocessing.get_context("spawn"))
    Large.sent = 0
    with workers.ordered_map(Large(), range(20), 2) as results:
        assert list(results) == [value * value for value in range(20)]
    assert Large.sent <= 2


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match="A worker process died"), workers.ordered_map(die, range(4), 2) as results:
        list(results)


def runs(pid: int) -> bool:
    try:
        return bool(
            pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        )  # of a dead one that nobody waited for it is empty
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="looks at processes through /proc")
def test_workers_end_with_their_parent():
    program = """if True:
        import os, time
        from prismer_jax.files import workers
        def pid(_):
            time.sleep(0.05)
            return os.getpid()
        with workers.ordered_map(pid, range(100), 2) as results:
            for one in results:
                print(one, flush=True)
    """
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = {int(parent.stdout.readline()) for _ in range(6)}
    parent.kill()
    parent.wait()
    for _ in range(1000):
        if not any(map(runs, pids)):
            return
        time.sleep(0.01)
    pytest.fail("workers are left")
