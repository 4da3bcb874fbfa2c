"""What processes of a job know in common; here each is a Ledger of its own in one process."""

import os

import pytest

from prismer_jax.errors import UserError
from prismer_jax.labelling.job import SAID, Job, settings, split
from prismer_jax.labelling.ledger import Ledger, past_speeds

SETTINGS = {"photos": 10, "shard_size": 4}
SHARDS = split(10, 4)


def work(ledger, stage):
    return ledger.work(stage, len(SHARDS), lambda _, report: report is not None and ledger.trusts(report))


def do(ledger, stage, among=(0, 1, 2), **report):
    """Does free shards; returns their numbers."""
    numbers = []
    for item in work(ledger, stage).free(among):
        with item:
            item.finish({"start": ledger.start, **report})
        numbers.append(item.index)
    return numbers


def test_photos_are_split_into_shards():
    assert [(shard.start, shard.stop, len(shard)) for shard in SHARDS] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]
    assert split(8, 4) == split(10, 4)[:2]


def test_of_many_problems_the_first_are_said_once_and_the_rest_are_not_kept(capsys):
    job = Job([], None, None, (), {})
    for number in (*range(SAID - 1), *range(1000), 5):
        job.skip(f"photo {number}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:-1] == [f"skipped: photo {number}" for number in range(SAID)]
    assert lines[-1] == "skipped: more of them, to be listed at the end"
    assert len(job._said) == SAID + 1


def test_stages_share_neither_marks_nor_leases(tmp_path):
    with Ledger(tmp_path, SETTINGS) as one, Ledger(tmp_path, SETTINGS) as other:
        held = next(work(one, "depth").free())
        assert do(other, "depth") == [1, 2]
        assert do(other, "edge") == [0, 1, 2]
        held.release()
        assert do(one, "depth") == [0]


def test_a_job_begun_again_trusts_its_marks_but_for_shards_with_problems(tmp_path):
    with Ledger(tmp_path, SETTINGS) as ledger:
        do(ledger, "depth", [0], problems=["missing photo"])
        do(ledger, "depth", [1])
        with Ledger(tmp_path, SETTINGS) as joined:  # a process that joins looks at nothing again
            assert work(joined, "depth").done() == {0, 1}
        assert work(Ledger(tmp_path, SETTINGS), "depth").done() == {0, 1}  # never closed, but of this process ...
    for path in (tmp_path / "leases").iterdir():  # ... which dies now
        path.unlink()
    with Ledger(tmp_path, SETTINGS) as again:
        assert work(again, "depth").done() == {1}


def test_recheck_trusts_no_mark(tmp_path):
    with Ledger(tmp_path, SETTINGS) as ledger:
        do(ledger, "depth")
    with Ledger(tmp_path, SETTINGS, recheck=True) as ledger:
        assert do(ledger, "depth") == [0, 1, 2]
        with Ledger(tmp_path, SETTINGS, recheck=True) as joined:
            assert do(joined, "depth") == []
        with pytest.raises(UserError, match=r"other settings .recheck was true, now it is false"):
            Ledger(tmp_path, SETTINGS)
    with Ledger(tmp_path, SETTINGS) as ledger:
        assert do(ledger, "depth") == []


def test_other_settings_are_refused_while_a_process_lives_and_begin_anew_afterwards(tmp_path):
    with Ledger(tmp_path / "w", SETTINGS) as ledger:
        do(ledger, "depth")
        with pytest.raises(UserError, match=r"at work here, with other settings .photos was 10, now it is 11"):
            Ledger(tmp_path / "w", SETTINGS | {"photos": 11})
        with Ledger(tmp_path / "w", SETTINGS):
            pass
    with Ledger(tmp_path / "w", SETTINGS | {"photos": 11}) as ledger:
        assert do(ledger, "depth") == [0, 1, 2]


def test_a_process_that_was_stopped_for_long_notices_a_job_with_other_settings(tmp_path):
    stopped = Ledger(tmp_path / "w", SETTINGS)
    stopped.check()
    for path in (tmp_path / "w/leases").iterdir():
        os.utime(path, (1, 1))
    with Ledger(tmp_path / "w", SETTINGS) as joined:
        stopped.check()  # of the same job
        joined.check()
    with Ledger(tmp_path / "w", SETTINGS | {"shard_size": 2}) as other:
        with pytest.raises(UserError, match=r"have begun here with other settings \(shard_size was 2, now it is 4\)"):
            stopped.check()
        other.check()
    stopped.close()


def test_settings_tell_a_source_from_another_of_the_same_length():
    class Source:
        def __init__(self, *names):
            self._names = names

        def __len__(self):
            return len(self._names)

        def name(self, index):
            return self._names[index]

    assert settings(Source("a", "b"), 4) == settings(Source("a", "b"), 4)
    assert settings(Source("a", "b"), 4) != settings(Source("b", "a"), 4)
    assert settings(Source("a", "b"), 4)["photos"] == 2

    class Unnamed:  # a finished data set, whose ids are in its records
        def __init__(self, *ids):
            self._ids = ids

        def __len__(self):
            return len(self._ids)

        def __getitem__(self, index):
            return {"id": self._ids[index]}

    assert settings(Unnamed("a", "b"), 4) == settings(Unnamed("a", "b"), 4)
    assert settings(Unnamed("a", "b"), 4) != settings(Unnamed("a", "c"), 4)


def test_speeds_are_of_shards_without_compilation_where_there_are_any(tmp_path):
    assert past_speeds(tmp_path) == {}
    with Ledger(tmp_path, SETTINGS) as ledger:
        do(ledger, "edge", made=4, seconds=8.0, cold=True)
        do(ledger, "depth", [0], made=4, seconds=8.0, cold=True)
        do(ledger, "depth", made=4, seconds=2.0, cold=False)
        do(ledger, "normal", made=0, seconds=0.1, cold=True)
        assert past_speeds(tmp_path) == {"depth": 2.0, "edge": 0.5}
    with Ledger(tmp_path, SETTINGS, recheck=True) as ledger:  # in which nothing was to do
        do(ledger, "depth", made=0, seconds=0.1, cold=True)
    assert past_speeds(tmp_path) == {"depth": 2.0, "edge": 0.5}


def test_a_damaged_note_begins_a_new_job(tmp_path):
    with Ledger(tmp_path, SETTINGS) as ledger:
        do(ledger, "depth")
    (tmp_path / "job.json").write_text('{"settings": cut o')
    with Ledger(tmp_path, SETTINGS) as ledger:
        assert do(ledger, "depth") == [0, 1, 2]
