"""Warnings are plain lines, whatever a library did to logging when it was imported."""

import subprocess
import sys


def test_a_warning_is_one_plain_line_although_a_library_configured_logging():
    code = "import logging; logging.basicConfig(); from prismer_jax import runtime; runtime.log_warnings()"
    run = [sys.executable, "-c", f"{code}; logging.getLogger('prismer_jax.input').warning('left out: 1 photo')"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stderr == "warning: left out: 1 photo\n"
