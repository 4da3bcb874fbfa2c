import json
import os
import pathlib
import subprocess
import sys

import pytest

from prismer_jax.errors import UserError
from tools.bench import __main__ as bench
from tools.bench import big_vision, paligemma, worker
from tools.bench.experts_test import fake

CHECKOUT = "PRISMER_BIG_VISION"  # of the environment: a clone of google-research/big_vision
TINY = dict(
    img=dict(width=32, depth=2, mlp_dim=72, num_heads=2, patch_size=[14, 14]),
    llm=dict(width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=300),
    **dict(image_size=28, words=290, prompts=[2, 4], max_new=2, batch=2, text=8, prefix=4, recipe=[3, 9]),
)


@pytest.fixture
def checkout(tmp_path):
    """A folder that passes for a clone."""
    (tmp_path / big_vision.MODEL).parent.mkdir(parents=True)
    (tmp_path / big_vision.MODEL).touch()
    return tmp_path


def test_a_table_with_the_temporary_memory_that_both_sides_say(monkeypatch, capsys, checkout):
    """A worker says it behind its peak."""
    ours, theirs = "2000000000, 300000000", "4000000000, 600000000"
    monkeypatch.setattr(worker, "our_command", lambda *_: fake([0.1, 4, 2, 3], ours))
    monkeypatch.setattr(worker, "their_command", lambda *_: fake([0.1, 2, 4, 8], theirs))
    (row,) = big_vision.measure(checkout, "python", seconds=0, rows=["training_8"])
    _, *lines = [line.split()[-5:] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["4.00", "4.00", "1.00", ">", "1.0"]
    assert lines[1] == ["2.00", "4.00", "0.50", "<", "1.0"]
    assert lines[2] == ["0.30", "0.60", "0.50", "<", "0.6"]
    assert (row["ratio"], row["temporaries_gb"]) == (1.0, [0.3, 0.6])


def test_no_ratio_of_temporaries_that_one_side_alone_says(monkeypatch, capsys):
    monkeypatch.setattr(worker, "our_command", lambda *_: fake([1, 1, 1, 1], "2000000000, 300000000"))
    monkeypatch.setattr(worker, "their_command", lambda *_: fake([1, 1, 1, 1], 4_000_000_000))
    (row,) = paligemma.measure("python", seconds=0, rows=["training"])
    assert "temporaries_gb" not in row
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_folder_that_is_no_clone_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no checkout of google-research/big_vision: it has no big_vision/models/proj"):
        big_vision.measure(tmp_path, "python")


def test_the_command_compares_with_big_vision(monkeypatch, capsys, checkout):
    commands = []
    monkeypatch.setattr(worker, "our_command", lambda *_: fake([1, 1, 1, 1], 10**9))
    monkeypatch.setattr(worker, "their_command", lambda *command: commands.append(command) or fake([2, 2, 2, 2], 10**9))
    words = ["paligemma", "--big-vision", str(checkout), "--seconds", "0", "--rows"]
    bench.main([*words, "decode"])
    ((python, module, row, _),) = commands
    assert (python, module, row) == (sys.executable, big_vision, "decode")
    with pytest.raises(UserError, match="paligemma could not be measured"):
        bench.main([*words, "question"])  # a row of the comparison with transformers
    assert "'question'" in capsys.readouterr().err


def test_a_python_without_flax_is_one_line(capsys, checkout, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'flax'\" >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match="paligemma could not be measured"):
        bench.main(["paligemma", "--big-vision", str(checkout), "--reference-python", str(python)])
    assert "No module named 'flax'. Give --reference-python one that has jax, flax" in capsys.readouterr().err


def test_both_sides_have_the_sizes_of_paligemma():
    """Those of So400m/14 (models/vit.py) and gemma_2b (models/ppp/gemma.py) of big_vision, but for the layers."""
    told = big_vision.settings()
    assert told["img"] == dict(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=[14, 14])
    llm = dict(width=2048, depth=4, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256, vocab_size=257152)
    assert told["llm"] == llm
    assert told["image_size"] == 224


@pytest.mark.skipif(CHECKOUT not in os.environ, reason=f"${CHECKOUT} names no clone of google-research/big_vision")
@pytest.mark.parametrize("row", big_vision.ROWS)
def test_big_vision_works_as_told(tmp_path, row):
    assert TINY.keys() == big_vision.settings().keys()
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(dict(TINY, checkout=str(pathlib.Path(os.environ[CHECKOUT]).resolve()))))
    command = worker.their_command(sys.executable, big_vision, row, settings)
    ran = subprocess.run(command, input="\n\n", capture_output=True, text=True)
    ready, *seconds, last = ran.stdout.splitlines()
    assert ready == "ready", ran.stderr
    assert len(seconds) == 2
    assert all(float(said) > 0 for said in seconds)
    peak, *temporaries = map(int, last.split())
    assert peak > 1e8
    assert len(temporaries) == (row != "decode")
