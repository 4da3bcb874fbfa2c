import pathlib
import sys

import pytest

from prismer_jax.errors import UserError
from tools.bench import experts

# What a worker says: 'ready', the seconds of each round, those behind the first twice, and at the end its memory or the
# bytes of a sample.
WORKER = """
import sys
print('ready', flush=True)
for seconds in {seconds} + {seconds}[1:]:
    if not sys.stdin.readline():
        break
    print(seconds, flush=True)
sys.stdin.read()
print({last}, flush=True)
"""


def fake(seconds, memory=0):
    return [sys.executable, "-c", WORKER.format(seconds=seconds, last=memory)]


def lines(monkeypatch, capsys, ours, theirs, against=None):
    monkeypatch.setattr(experts, "our_command", lambda *_, checkout=None: theirs if checkout else ours)
    monkeypatch.setattr(experts, "their_command", lambda *_: theirs)
    reference = None if against else pathlib.Path("checkout")
    experts.measure(["depth"], reference, "python", batch=4, seconds=0, against=against)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_fastest_batch_of_each_counts_but_not_the_first(monkeypatch, capsys):
    ours, theirs = fake([0.1, 2, 3, 4], 2_000_000_000), fake([0.1, 9, 8, 9], 1_500_000_000)
    heads, row = lines(monkeypatch, capsys, [*ours], [*theirs])
    assert heads[0] == "expert"
    assert row == ["depth", "2.00", "0.50", "4.00", "2.00", "1.50"]


def test_another_checkout_takes_the_place_of_the_reference(monkeypatch, capsys):
    _, row = lines(monkeypatch, capsys, fake([1, 2, 2, 2], 10**9), fake([1, 4, 4, 4], 10**9), pathlib.Path("old"))
    assert row == ["depth", "2.00", "1.00", "2.00", "1.00", "1.00"]


def test_an_expert_that_the_reference_cannot_run_has_a_row_too(monkeypatch, capsys):
    _, row = lines(monkeypatch, capsys, fake([1, 2, 2, 2], 10**9), [sys.executable, "-c", "raise SystemExit('none')"])
    assert row == ["depth", "2.00", "-", "-", "1.00", "-"]


def test_a_worker_that_ends_is_one_line(monkeypatch, capsys):
    with pytest.raises(UserError, match="ended before its first round"):
        lines(monkeypatch, capsys, [sys.executable, "-c", "1"], fake([1, 1, 1, 1]))
    with pytest.raises(UserError, match="ended with status 0"):
        lines(monkeypatch, capsys, [sys.executable, "-c", "print('ready'); input()"], fake([1, 1, 1, 1]))
