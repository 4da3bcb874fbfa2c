import json
import sys

import pytest

from prismer_jax.errors import UserError
from prismer_jax.programs import TUNABLES
from tools.bench import __main__ as bench
from tools.bench import build, prismer, startup, worker
from tools.bench.experts_test import fake


@pytest.mark.parametrize("words", [["scenes"], ["--only", "scenes"]])
def test_a_benchmark_is_named_alone_or_by_only(words, capsys):
    bench.main([*words, "--seconds", "0.1"])
    rate, machine = capsys.readouterr().out.splitlines()
    assert rate.startswith("scenes a second on one core")
    assert float(rate.split()[-1]) > 0
    assert "cores" in machine


def test_a_benchmark_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="Unknown benchmark 'scene'"):
        bench.main(["scene"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nanovlm", "--rows", "trainin"], "Unknown row 'trainin'. Did you mean 'training'"),
        (["experts", "--experts", "deph"], "Unknown expert 'deph'. Did you mean 'depth'"),
        (["train", "--against", "/nowhere"], "/nowhere: no checkout of this project"),
        (["loader", "--reference", "/nowhere"], "/nowhere: no checkout of NVlabs/prismer"),
        (["blip2", "--reference-python", "/nowhere/python"], "/nowhere/python: No such file or directory. Give"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    with pytest.raises(UserError, match=f"{words[0]} could not be measured"):
        bench.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words[0]}: {message}")


def test_a_python_without_pytorch_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(prismer, "check_reference", lambda _: None)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -P "$@"\n')  # no packages
    python.chmod(0o755)
    with pytest.raises(UserError):
        bench.main(["caption", "--reference", str(tmp_path), "--reference-python", str(python)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: caption: {python}: ModuleNotFoundError: No module named 'torch'. "
        "Give --reference-python one that has PyTorch."
    )


def test_several_suites_are_in_one_file_and_what_fails_hides_nothing(monkeypatch, capsys, tmp_path):
    sides = {"training": ([9, 1, 1, 1], [9, 2, 2, 2]), "vqa_rank16": ([9, 1, 1, 1], [9, 8, 8, 8])}
    sides |= {"vqa_rank128": ([9, 2, 2, 2], [9, 8, 8, 8]), "caption": ([], [1])}
    ends = [sys.executable, "-c", "print('ready'); input()"]
    monkeypatch.setattr(worker, "our_command", lambda _, row: fake(sides[row][0], 10**9) if sides[row][0] else ends)
    monkeypatch.setattr(worker, "their_command", lambda _, __, row, ___: fake(sides[row][1], 10**9))
    monkeypatch.setattr(prismer, "check_reference", lambda _: None)
    monkeypatch.setattr(bench, "_python", lambda _: "python")
    monkeypatch.setattr(startup, "measure", lambda **_: [dict(row="cold", seconds=1.0)])
    file = tmp_path / "results.json"
    words = ["caption", "vqa_rank", "startup", "train", "--reference", str(tmp_path), "--seconds", "0"]
    with pytest.raises(UserError, match="caption could not be measured: see above"):
        bench.main([*words, "--json", str(file)])
    results = json.loads(file.read_text())
    assert list(results) == ["caption", "vqa_rank", "startup", "train", "machine"]
    assert "ended with status 0" in results["caption"]["error"]
    assert (results["vqa_rank"]["ratio"], results["train"]["ratio"]) == (4.0, 2.0)  # the least of both rows
    assert [row["row"] for row in results["vqa_rank"]["rows"]] == ["vqa_rank16", "vqa_rank128"]
    assert results["startup"] == {"rows": [{"row": "cold", "seconds": 1.0}]}
    assert "train:" in capsys.readouterr().out.splitlines()


def test_the_ratio_of_memory_is_the_worst(monkeypatch, tmp_path):
    rows = [dict(ratio=2.0, ratio_of_memory=x) for x in (0.5, 1.5)]
    monkeypatch.setattr(prismer, "measure", lambda *_, **__: rows)
    bench.main(["memory", "--json", str(tmp_path / "file")])
    assert json.loads((tmp_path / "file").read_text())["memory"]["ratio"] == 1.5


def test_another_checkout_takes_the_place_of_the_original(capsys, tmp_path):
    """Its worker is run, with its own packages."""
    package = tmp_path / "tools/bench"
    package.mkdir(parents=True)
    for name in ("__init__.py", "../__init__.py", "worker.py"):
        (package / name).touch()
    said = "import sys\nprint('ready', flush=True)\nfor _ in sys.stdin: print(4, flush=True)\nprint(2 * 10**9)"
    (package / "prismer.py").write_text(said)
    command = worker.our_command(prismer, "encoder", checkout=tmp_path)
    theirs, _ = worker.in_turn([command, fake([1, 2, 2, 2])], 0)
    assert (theirs.seconds, theirs.last) == ([4.0] * 6, 2e9)


def test_records_written_a_second(monkeypatch, capsys):
    monkeypatch.setattr(build, "PHOTOS", 4)
    monkeypatch.setattr(build, "SIZE", 96)
    (row,) = build.measure(seconds=0)
    assert len(row["seconds"][0]) == 3
    assert row["a_second"][0] > 0
    assert capsys.readouterr().out.startswith("records written a second of one core")


def test_each_code_starts_in_the_environment_of_its_users(monkeypatch):
    for told, before in ((f"glibc.malloc.check=1:{TUNABLES}", "glibc.malloc.check=1"), ("a=1", "a=1")):
        monkeypatch.setenv("GLIBC_TUNABLES", told)
        assert worker.as_users_have_it()["GLIBC_TUNABLES"] == before
    monkeypatch.setenv("GLIBC_TUNABLES", TUNABLES)
    assert "GLIBC_TUNABLES" not in worker.as_users_have_it()
