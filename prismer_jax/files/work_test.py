"""Items that are each made once, by whichever process takes them: in one process, and in three of which one dies."""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from prismer_jax.files import work as module
from prismer_jax.files.leases import Leases
from prismer_jax.files.work import Work

NAMES = ["a", "b", "c"]


@pytest.fixture
def work(tmp_path):
    return Work(str(tmp_path / "marks"), NAMES, Leases(tmp_path / "leases"))


def make(work: Work, among: list[int] | None = None, **report) -> list[int]:
    """Makes all free items; returns their numbers."""
    numbers = []
    for item in work.free(among):
        with item:
            item.finish(report)
        numbers.append(item.index)
    return numbers


def test_an_item_is_made_once_and_its_report_is_read_by_other_processes(work):
    other = Work(work.folder, NAMES, work.leases)
    held = next(work.free())
    assert make(other, [0, 2]) == [2]  # the first is held
    held.release()
    assert make(other, records=4) == [0, 1]
    assert work.done() == {0, 1, 2}
    assert make(work) == []
    assert work.reports()[2] == work.report(2) == {}
    assert Work(work.folder, [*NAMES, "d"], None).report(3) is None
    assert [report.get("records") for report in work.reports().values()] == [4, 4, None]


def test_an_item_whose_result_is_gone_is_made_again(tmp_path):
    result = tmp_path / "result"

    def there(index, report):
        return report is not None and result.exists()

    for _ in range(2):
        result.write_text("")
        make(Work(str(tmp_path), ["a"], Leases(tmp_path / "leases"), counts=there))
        assert Work(str(tmp_path), ["a"], None, counts=there).done() == {0}
        result.unlink()
        assert Work(str(tmp_path), ["a"], None, counts=there).done() == set()


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_mark_does_not_count(work, text):
    make(work)
    (pathlib.Path(work.folder) / "b.json").write_text(text)
    assert Work(work.folder, NAMES, None).done() == {0, 2}


def test_an_item_that_another_process_took_over_is_not_marked(work, capsys):
    with next(work.free()) as item:
        for path in work.leases.folder.iterdir():
            path.unlink()
        item.finish({})
        pytest.fail("it was marked")
    assert "a: another process took over" in capsys.readouterr().err
    assert work.done() == set()
    with pytest.raises(KeyError), next(work.free()) as item:
        raise KeyError
    assert make(work) == [0, 1, 2]  # what failed is free again


def test_processes_without_leases_take_turns():
    works = [Work("memory://bucket/marks", NAMES, None) for _ in range(2)]
    numbers = [[], []]
    for number, work in enumerate(works):
        for item in work.share(number, len(works)):
            with item:
                item.finish({})
            numbers[number].append(item.index)
    assert numbers == [[0, 2], [1]]
    assert works[0].done() == {0, 1, 2}


def test_what_another_process_has_just_done_is_no_work_without_leases_either(tmp_path):
    looks = iter([False, True])  # between the two it was done
    assert list(Work(str(tmp_path), ["a"], None, counts=lambda index, report: next(looks)).share()) == []


def test_share_looks_again_after_taking_and_waits_for_others(tmp_path):
    names = ["there", "slow", "dying", "mine"]
    work, other = (Work(str(tmp_path / "marks"), names, Leases(tmp_path / "leases")) for _ in range(2))
    other.mark(0, {})
    slow, dying = other.free([1, 2])

    def outcome():
        time.sleep(0.2)
        with slow:
            slow.finish({})
        other.leases.forget(dying._lease)
        os.utime(dying._lease.path, (0, 0))

    thread = threading.Thread(target=outcome)
    thread.start()
    made = []
    for item in work.share(poll=0.05):
        with item:
            item.finish({})
        made.append(names[item.index])
    thread.join()
    assert made == ["mine", "dying"]
    assert not list((tmp_path / "leases").iterdir())


def test_a_change_of_settings_is_said():
    assert module.change({"count": 10, "old": 1}, {"count": 10}) is None
    assert module.change({"count": 10}, {"count": 11}) == "count was 10, now it is 11"
    assert module.change({}, {"ids": "x" * 400}).startswith('ids was null, now it is "xxx')
    assert len(module.change({}, {"ids": "x" * 400})) < 350


WORKER = """
import os, pathlib, sys, time
from prismer_jax.files import storage
from prismer_jax.files.leases import Leases
from prismer_jax.files.work import Work
out = pathlib.Path(sys.argv[1])
names = [f"{i:02}" for i in range(30)]
for item in Work(str(out / "marks"), names, Leases(out / "leases", 1.0)).share(poll=0.05):
    with item:
        with open(out / "log", "a") as log:
            log.write(f"{names[item.index]}\\n")
        time.sleep(0.03)
        item.check()
        storage.write(out / names[item.index], names[item.index])
        item.finish({})
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_three_processes_do_everything_once_though_one_dies_or_hangs(tmp_path, how):
    """What the dead had begun is done again; nothing else is."""
    processes = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)]) for _ in range(3)]
    while not (tmp_path / "03").exists():
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    processes[0].send_signal(how)
    try:
        assert [process.wait(60) for process in processes[1:]] == [0, 0]
        begun = collections.Counter((tmp_path / "log").read_text().split())
        assert sorted(begun) == [f"{i:02}" for i in range(30)]
        assert all((tmp_path / name).read_text() == name for name in begun)
        assert sum(begun.values()) <= 31
    finally:
        processes[0].send_signal(signal.SIGCONT)
        if how == signal.SIGSTOP:
            assert processes[0].wait(60) == 0  # notices, and finds all done
        processes[0].kill()
        processes[0].wait()
    assert not [path for path in (tmp_path / "leases").iterdir() if how == signal.SIGSTOP]
