"""The notebooks: each is valid, carries no outputs, is Python in every cell, and runs whole with tiny settings."""

import pathlib

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

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
