"""Warnings are plain lines, whatever a library did to logging when it was imported; and XLA's flags are set in time."""

import contextlib
import importlib.metadata
import logging
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from prismer_jax import runtime


def test_a_warning_is_one_plain_line_although_a_library_configured_logging():
    code = "import logging; logging.basicConfig(); from prismer_jax import runtime; runtime.log_warnings()"
    run = [sys.executable, "-c", f"{code}; logging.getLogger('prismer_jax.input').warning('left out: 1 photo')"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stderr == "warning: left out: 1 photo\n"


def test_a_handler_that_collects_records_goes_on_collecting(caplog):
    runtime.log_warnings()
    logging.getLogger("prismer_jax.input").warning("left out: 1 photo")
    assert "left out: 1 photo" in caplog.text


@pytest.mark.parametrize(
    ("version", "told", "flags"),
    [
        ("0.10.2", None, "--xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("0.10.2", "--xla_a=1", "--xla_a=1 --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=dot", "--xla_cpu_experimental_ynn_fusion_type=dot"),
        ("0.11.0", None, None),
        ("0.12.0.1", "--xla_a=1", "--xla_a=1"),
    ],
)
def test_xla_sums_itself_where_its_library_is_slow_unless_it_is_told_something_else(monkeypatch, version, told, flags):
    monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": version}.__getitem__)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if told is not None:
        monkeypatch.setenv("XLA_FLAGS", told)
    runtime.use_xla_sums()
    assert os.environ.get("XLA_FLAGS") == flags


@pytest.mark.skipif(not importlib.metadata.version("jaxlib").startswith("0.10."), reason="only jaxlib 0.10 is told so")
def test_xla_knows_the_flag_and_a_sum_of_products_is_its_own():
    code = "from prismer_jax import runtime; runtime.use_xla_sums(); import jax; x = jax.numpy.ones((1, 512, 512))\n"
    code += "print('__ynn' in jax.jit(lambda x, y: (x * y).sum(-1)).lower(x, x).compile().as_text())"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(("run", "first", "written"), [(4, 1, 1), (2, 1, 1), (4, 0, 0), (2, 3, 0)])
def test_a_profile_is_written_also_of_a_run_that_ends_before_it(tmp_path, run, first, written):
    with contextlib.suppress(KeyboardInterrupt), runtime.profiled(tmp_path, first=first, steps=2) as before:
        for step in range(1, run + 1):
            before(step, jnp.ones(1))
        raise KeyboardInterrupt
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == written
