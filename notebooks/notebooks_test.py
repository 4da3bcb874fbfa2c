"""The notebooks: each is valid, carries no outputs, is Python in every cell, and runs whole with tiny settings."""

import contextlib
import os
import pathlib
import queue
import re
import sys
import time
import types

import jax  # noqa: F401  before google.colab is there, for it would ask for more of it
import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.manager import start_new_kernel

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_stripped_and_parses(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("PRISMER_NOTEBOOK_SMOKE" in line for line in code[0].source.splitlines())
    for cell in code:
        assert (cell.outputs, cell.execution_count) == ([], None)
        compile(TransformerManager().transform_cell(cell.source), name, "exec")


def run_cell(name, text, names):
    """Runs the cell of a notebook that holds a text."""
    (cell,) = [cell for cell in read(name).cells if cell.cell_type == "code" and text in cell.source]
    exec(compile(TransformerManager().transform_cell(cell.source), name, "exec"), names)


@pytest.fixture
def shell():
    """What stands for IPython: the commands and magics that a cell runs."""
    asked = []
    shell = types.SimpleNamespace(asked=asked, system=asked.append)
    shell.run_line_magic = lambda name, line: asked.append(f"%{name} {line}")
    return shell


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["colab", "colab again", "checkout"])
def test_it_installs_on_colab_where_a_part_of_what_it_needs_is_there_and_too_old(
    name, place, shell, tmp_path, monkeypatch
):
    """In August 2026 grain 0.2.18 was there beside jax 0.7.2, without jaxtyping (googlecolab/backend-info)."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path if place == "colab" else FOLDER)
    if place != "checkout":
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    (tmp_path / "prismer_jax").mkdir()  # what git would have cloned
    if place == "colab":
        with pytest.raises(AssertionError, match="Say in the first cell where to clone prismer_jax from"):
            run_cell(name, "git clone", {"os": os, "REPOSITORY": "", "get_ipython": lambda: shell})
        assert not shell.asked
    run_cell(name, "git clone", {"os": os, "REPOSITORY": "https://host/r", "get_ipython": lambda: shell})
    commands = [line.split()[0] for line in shell.asked]
    assert commands == {"colab": ["git", "%pip"], "colab again": ["%pip"], "checkout": []}[place]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_whole(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_NOTEBOOK_SMOKE", "1")
    monkeypatch.setenv("PRISMER_NOTEBOOK_DIR", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # eight devices, for tests of sharding
    notebook = read(name)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.slow
def test_interrupting_the_kernel_saves_the_step_and_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    code = f"""if True:
        from prismer_jax import config
        from prismer_jax.train import train

        train(config.load("configs/quickstart.py:smoke", ["total_steps=100000"]), {str(tmp_path)!r})
    """
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(FOLDER.parent))
    try:
        client.execute(code)
        shown, ended, asked = [], time.monotonic() + 600, False
        while not any(one["header"]["msg_type"] == "error" for one in shown):
            assert time.monotonic() < ended
            with contextlib.suppress(queue.Empty):
                shown.append(client.get_iopub_msg(timeout=1))
            log = tmp_path / "metrics.jsonl"
            if not asked and log.is_file() and log.read_text().strip():
                manager.interrupt_kernel()
                asked = True
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    (error,) = [one["content"] for one in shown if one["header"]["msg_type"] == "error"]
    (line,) = error["traceback"]
    stopped = re.match(r"Stopped: .*step (\d+) is saved", line)
    assert stopped, line
    assert (tmp_path / "checkpoints" / stopped.group(1)).is_dir()
    bars = [one["content"]["data"] for one in shown if one["header"]["msg_type"] == "display_data"]
    assert any("text/html" in bar for bar in bars)
