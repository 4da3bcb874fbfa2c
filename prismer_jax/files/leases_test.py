"""One owner at a time, whoever dies: in one process, among threads, and among processes that are killed."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from prismer_jax.files import leases as module
from prismer_jax.files.leases import LeaseLost, Leases

HOUR = 3600


@pytest.fixture
def leases(tmp_path):
    return Leases(tmp_path / "leases")


def grow_old(lease, seconds=HOUR):
    """Its owner has given no sign of life for so long."""
    then = time.time() - seconds
    os.utime(lease.path, (then, then))


def test_one_owner_at_a_time_and_free_again_after_release(leases):
    with leases.take("a") as lease:
        assert lease.held()
        assert leases.take("a") is None
        assert Leases(leases.folder).take("a") is None
        assert leases.take("a.1") is not None  # another name
        assert leases.take("b") is not None
    assert not lease.held()
    with leases.take("a"):
        pass
    assert not list(leases.folder.glob("a.[0-9].lease"))  # nothing is left behind


def test_an_old_lease_is_stolen_and_its_owner_notices(leases):
    first = leases.take("a")
    first.check()
    grow_old(first, leases.expiry / 2)
    assert leases.take("a") is None
    grow_old(first)
    second = leases.take("a")
    assert second.held()
    with pytest.raises(LeaseLost, match="a: another process took over"):
        first.check()
    first.beat()
    first.release()  # of no effect on the thief
    second.check()
    second.release()
    third = leases.take("a")  # the same generation as the first's, but not the first's
    assert third.generation == first.generation
    assert third.held()
    assert not first.held()


def test_of_many_thieves_one_wins(leases):
    for _ in range(20):
        grow_old(leases.take("a"))
        thieves = [Leases(leases.folder) for _ in range(8)]
        start, won = threading.Barrier(len(thieves)), []

        def steal(thief, start=start, won=won):
            start.wait()
            won.append(thief.take("a"))

        threads = [threading.Thread(target=steal, args=[thief]) for thief in thieves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (lease,) = filter(None, won)
        assert lease.held()
        lease.release()


def test_a_thief_that_dies_before_it_has_tidied_up_is_stolen_from_in_turn(leases):
    old = leases.take("a")
    grow_old(old)
    new = leases.file("a", old.generation + 1)
    new.write_text("")  # killed before it wrote its name
    assert leases.take("a") is None  # who knows
    assert not old.held()
    os.utime(new, (0, 0))
    lease = leases.take("a")
    assert lease.generation == old.generation + 2
    assert [path.name for path in leases.folder.iterdir()] == [lease.path.name]


def test_signs_of_life_keep_a_lease(tmp_path):
    owner, thief = (Leases(tmp_path, expiry=0.5) for _ in range(2))
    lease = owner.take("a")
    for _ in range(10):
        time.sleep(0.1)
        assert thief.take("a") is None
    owner.forget(lease)  # no more of them
    time.sleep(0.8)
    assert thief.take("a") is not None
    assert not lease.held()


def test_a_lease_of_a_dead_process_of_this_host_is_free_at_once(leases):
    program = (
        "import os, sys; from prismer_jax.files.leases import Leases; Leases(sys.argv[1]).take('a');"
        "print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(leases.folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"taken\n"
    assert leases.take("a") is None
    process.kill()
    time.sleep(0.05)  # not yet waited for: a zombie
    assert leases.take("a") is not None
    process.communicate()


@pytest.mark.parametrize(
    ("owner", "abandoned"),
    [
        ({}, False),
        ({"host": "elsewhere"}, False),  # nobody here knows its processes
        ({"pid": 2**22 + 1}, True),  # beyond Linux's largest id
        ({"started": "1"}, True),  # the id is another process's by now
    ],
)
def test_who_is_dead(leases, owner, abandoned):
    if "started" in owner and not os.path.exists("/proc/self/stat"):
        pytest.skip("the system does not say when processes started")
    leases.file("a", 1).write_text(json.dumps(module._me() | owner))
    assert (leases.take("a") is not None) == abandoned


def test_a_process_that_was_killed_before_it_wrote_its_name_is_not_waited_for(leases):
    path = leases.file("a", 1)
    path.touch()
    assert leases.take("a") is None  # it may be writing it
    then = time.time() - 2 * module.NAMELESS
    os.utime(path, (then, then))
    assert leases.take("a").generation == 2


def test_a_full_disk_leaves_no_lease(leases, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        leases.take("a")
    assert not list(leases.folder.iterdir())


def test_names_are_names_of_files(leases):
    for name in ("", "a/b", "/a"):
        with pytest.raises(ValueError, match="becomes a file's"):
            leases.take(name)


def test_sweep_tells_the_living_and_removes_the_dead(leases):
    for name in ("p.1", "p.2", "q.1"):
        lease = leases.take(name)
    old = leases.take("p.3")
    grow_old(old)
    assert leases.sweep("p.") == ["p.1", "p.2"]
    assert not old.path.exists()
    assert lease.held()
    assert leases.sweep() == ["p.1", "p.2", "q.1"]


def test_wait_takes_it_as_soon_as_it_is_free_and_close_releases_all(leases):
    other = Leases(leases.folder)
    other.take("a")
    other.take("b")
    threading.Timer(0.2, other.close).start()
    with leases.wait("a", poll=0.02) as lease:
        assert lease.held()
    assert leases.take("b") is not None
