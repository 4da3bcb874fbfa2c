"""How a program ends that a signal stops, wherever its threads are."""

import os
import subprocess
import sys

import pytest

from prismer_jax.testing import ROOT

COMPILING = """
import sys, threading, time
import jax, jax.numpy as jnp
from prismer_jax import errors

def program(x):
    for i in range(400):
        x = jnp.sin(x[::-1] + i) @ x
    return x

def main():
    lowered, started = jax.jit(program).lower(jnp.ones((8, 8))), threading.Event()
    thread = threading.Thread(target=lambda: (started.set(), lowered.compile()), daemon=sys.argv[1] == "daemon")
    thread.start()
    started.wait()
    time.sleep(0.2)
    assert thread.is_alive()
    raise KeyboardInterrupt

errors.run_main(main)
"""


CALLED = """
import contextlib
from prismer_jax import errors

def main():
    raise KeyboardInterrupt

main.__module__ = "another"
with contextlib.suppress(SystemExit):
    errors.run_main(main)
"""


def test_a_program_that_calls_another_ones_main_has_its_own_status():
    """A test run, say, whose status would else be that of the main that it tests."""
    assert subprocess.run([sys.executable, "-c", CALLED], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("thread", ["daemon", "joined"])
def test_an_interrupt_while_a_thread_compiles_is_one_line_and_status_2(thread):
    """Python took down its interpreter while XLA's threads still used it: jaxlib 0.10.2 died of SIGSEGV."""
    slowly = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-c", COMPILING, thread]
    run = subprocess.run(command, cwd=ROOT, env=slowly, capture_output=True, text=True)
    assert run.stderr == "interrupted: stopped by Ctrl-C; what was saved before stays valid.\n"
    assert run.returncode == 2
