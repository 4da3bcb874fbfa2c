import sys

import pytest

from prismer_jax.errors import UserError
from tools.bench import startup

STARTS = """
import os, pathlib, sys
compiled = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
log = pathlib.Path(os.environ["PRISMER_DATA_DIR"], "log")
with log.open("a") as file:
    print("warm" if compiled.exists() else "cold", file=file)
compiled.mkdir(exist_ok=True)
print("first step after 1.0 s")
while True:
    sum(range(100_000))
"""


def test_each_cold_start_has_new_folders_and_the_warm_one_its_own(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/nowhere")
    monkeypatch.setattr(startup, "command", lambda *_: [sys.executable, "-c", STARTS])
    rows = startup.measure()
    assert (tmp_path / "log").read_text().split() == ["cold", *["cold", "warm"] * startup.STARTS]
    assert [row["row"] for row in rows] == ["cold", "warm"]
    assert all(len(row["starts"]) == startup.STARTS and row["seconds"] > 0 for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["first", "cold", "warm"]


def test_another_checkout_starts_in_turn(monkeypatch, capsys, tmp_path):
    checkouts = []

    def first_step(words, environment, checkout):
        checkouts.append(checkout)
        return startup.Start(wall=3.0 if checkout == tmp_path else 2.0, processor=1.0)

    monkeypatch.setattr(startup, "first_step", first_step)
    rows = startup.measure(against=tmp_path)
    assert checkouts[:2] == [startup.ROOT, tmp_path]
    assert checkouts[2:] == [startup.ROOT, startup.ROOT, tmp_path, tmp_path] * startup.STARTS
    assert [row["ratio"] for row in rows] == [1.5, 1.5]
    assert [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]] == [["3.0", "1.50"]] * 2


def test_a_command_starts_in_its_checkout(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}$"):
        startup.first_step([sys.executable, "-c", "import os; print(os.getcwd())"], {}, tmp_path)


def test_a_start_that_fails_says_its_last_line():
    with pytest.raises(UserError, match="ended before its first step: error: no config"):
        startup.first_step([sys.executable, "-c", "print('hello'); print('error: no config')"], {})


def test_the_loop_says_what_is_waited_for():
    assert startup.FIRST in (startup.ROOT / "prismer_jax/train.py").read_text()
