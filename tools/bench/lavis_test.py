import ast
import json
import pathlib

import pytest

from prismer_jax.errors import UserError
from tools.bench import __main__ as bench
from tools.bench import blip2, lavis, worker
from tools.bench.experts_test import fake

TODAY = "# from lavis.models.blip2_models.modeling_opt import OPTForCausalLM\nfrom transformers import OPTForCausalLM\n"
BEFORE = "import torch\nfrom lavis.models.blip2_models.modeling_opt import OPTForCausalLM, OPTConfig\n"


@pytest.fixture
def checkout(tmp_path):
    """Returns a function that makes a checkout with such a blip2_opt.py."""

    def make(text):
        file = tmp_path / lavis.OWN_OPT
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path

    return make


def test_the_worker_is_told_the_checkout_and_both_sides_have_one_model(monkeypatch, capsys, checkout):
    told = []

    def theirs(python, module, row, settings):
        told.append((python, module.__name__, row, json.loads(settings.read_text())))
        return fake([0.1, 8, 8, 8], 4_000_000_000)

    monkeypatch.setattr(worker, "our_command", lambda *_: fake([0.1, 4, 2, 3], 2_000_000_000))
    monkeypatch.setattr(worker, "their_command", theirs)
    monkeypatch.setattr(bench, "_python", lambda _: "python")
    source = checkout(TODAY)
    bench.main(["blip2", "--reference", str(source), "--seconds", "0", "--rows", "stage1"])
    _, _, speed, memory, _ = (line.split()[-5:] for line in capsys.readouterr().out.splitlines())
    assert speed == ["2.00", "0.50", "4.00", ">", "1.1"]
    assert memory == ["2.00", "4.00", "0.50", "<", "1.0"]
    assert told == [("python", lavis.__name__, "stage1", {**blip2.settings(), "source": str(source)})]


@pytest.mark.parametrize(("text", "row"), [(TODAY, "captions"), (BEFORE, "captions_uncached")])
def test_each_generation_of_lavis_has_its_row_of_captions(monkeypatch, checkout, text, row):
    monkeypatch.setattr(lavis, "compare", lambda *_, rows, **__: rows)
    rows = lavis.measure(checkout(text), "python")
    assert rows == [row, "captions_t5", "rerank", "stage2", "stage1"]
    assert set(rows) < set(lavis.OURS)


def test_what_is_no_checkout_or_of_the_other_generation_is_one_line(checkout, tmp_path):
    with pytest.raises(UserError, match="no checkout of salesforce/LAVIS: it has no lavis/models/blip2_models/blip2_o"):
        lavis.measure(tmp_path / "nowhere", "python")
    with pytest.raises(UserError, match=r"the row 'captions_uncached' needs LAVIS as of 720f689\^: git checkout"):
        lavis.measure(checkout(TODAY), "python", rows=["captions_uncached"])
    with pytest.raises(UserError, match="the row 'captions' needs LAVIS as of main"):
        lavis.measure(checkout(BEFORE), "python", rows=["captions"])


def test_both_sides_have_all_rows(tmp_path):
    script = worker.their_command("python", lavis, "stage1", tmp_path)[1]
    body = ast.parse(pathlib.Path(script).read_text()).body
    (rows,) = [node.value for node in body if isinstance(node, ast.AnnAssign) and node.target.id == "ROWS"]
    assert {key.value for key in rows.keys} == set(lavis.ROWS) == set(lavis.OURS)


def test_transformers_has_no_stage_1(monkeypatch, capsys):
    monkeypatch.setattr(worker, "our_command", lambda *_: fake([0.1, 4, 2, 3], 2_000_000_000))
    monkeypatch.setattr(worker, "their_command", lambda *_: pytest.fail("it was asked to"))
    (row,) = blip2.measure("python", seconds=0, rows=["stage1"])
    assert "ratio" not in row
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "2.00"
