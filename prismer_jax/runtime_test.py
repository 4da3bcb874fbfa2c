"""Warnings are plain lines, whatever a library did to logging when it was imported."""

import logging
import subprocess
import sys

from prismer_jax import runtime


def test_a_warning_is_one_plain_line_although_a_library_configured_logging():
    code = "import logging; logging.basicConfig(); from prismer_jax import runtime; runtime.log_warnings()"
    run = [sys.executable, "-c", f"{code}; logging.getLogger('prismer_jax.input').warning('left out: 1 photo')"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stderr == "warning: left out: 1 photo\n"


def test_a_handler_that_collects_records_goes_on_collecting(caplog):
    runtime.log_warnings()
    logging.getLogger("prismer_jax.input").warning("left out: 1 photo")
    assert "left out: 1 photo" in caplog.text
