"""What processes of a job know in common; here each is a Ledger of its own in one process."""

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files.leases import LeaseLost
from prismer_jax.labelling.job import split
from prismer_jax.labelling.ledger import Ledger, past_speeds

WORK = {"photos": 10, "shard_size": 4}
SHARDS = split(10, 4)


def do(ledger, stage, count=None, **report):
    """Does free shards; returns their indices."""
    done = []
    for lease, shard in ledger.free(stage, SHARDS):
        with lease:
            ledger.mark(lease, stage, shard, report)
        done.append(shard.index)
        if len(done) == count:
            break
    return done


def test_photos_are_split_into_shards():
    assert [(shard.start, shard.stop, len(shard)) for shard in SHARDS] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]
    assert split(8, 4) == split(10, 4)[:2]


def test_what_one_process_has_done_another_leaves_alone(tmp_path):
    with Ledger(tmp_path, WORK) as one, Ledger(tmp_path, WORK) as other:
        assert do(one, "depth", 1) == [0]
        assert other.marked("depth") == {0}
        held = next(one.free("depth", SHARDS))
        assert do(other, "depth") == [2]  # neither what is done nor what is held
        held[0].release()
        assert do(other, "depth", made=4) == [1]
        assert one.marked("depth") == {0, 1, 2}
        assert one.reports("depth")[1] == {"made": 4}
        assert one.marked("edge") == set()


def test_a_shard_that_was_taken_over_is_not_marked(tmp_path):
    with Ledger(tmp_path, WORK) as ledger:
        lease, shard = next(ledger.free("depth", SHARDS))
        lease.path.unlink()
        with pytest.raises(LeaseLost):
            ledger.mark(lease, "depth", shard, {})
        assert not ledger.marked("depth")


def test_a_new_job_looks_at_everything_again_and_one_that_joins_does_not(tmp_path):
    with Ledger(tmp_path, WORK) as first:
        do(first, "depth", problems=[1])
        with Ledger(tmp_path, WORK) as joined:
            assert joined.marked("depth") == {0, 1, 2}
        assert Ledger(tmp_path, WORK).marked("depth") == {0, 1, 2}  # never closed, but of this process ...
    for path in (tmp_path / "leases").iterdir():  # ... which dies now
        path.unlink()
    with Ledger(tmp_path, {"photos": 9, "shard_size": 4}) as second:
        assert second.marked("depth") == set()
        assert second.before("depth", SHARDS[0]) == {"problems": [1]}
    with Ledger(tmp_path, WORK) as third:
        assert third.before("depth", SHARDS[0]) == {}
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3  # leases, this job and the one before


def test_other_work_in_the_same_folder_is_refused_while_a_process_lives(tmp_path):
    with Ledger(tmp_path / "w", WORK):
        with pytest.raises(UserError, match="on photos 10, shard_size 4, not on photos 11, shard_size 4"):
            Ledger(tmp_path / "w", WORK | {"photos": 11})
        with Ledger(tmp_path / "w", WORK):
            pass
    with Ledger(tmp_path / "w", WORK | {"photos": 11}):
        pass


def test_speeds_are_of_shards_without_compilation_where_there_are_any(tmp_path):
    assert past_speeds(tmp_path) == {}
    with Ledger(tmp_path, WORK) as ledger:
        do(ledger, "edge", made=4, seconds=8.0, cold=True)
        do(ledger, "depth", 1, made=4, seconds=8.0, cold=True)
        do(ledger, "depth", made=4, seconds=2.0, cold=False)
        do(ledger, "normal", made=0, seconds=0.1, cold=True)
        assert ledger.speeds() == {"depth": 2.0, "edge": 0.5}
    with Ledger(tmp_path, WORK) as ledger:  # in which nothing was to do
        do(ledger, "depth", made=0, seconds=0.1, cold=True)
        assert ledger.speeds() == {"depth": 2.0, "edge": 0.5}
    assert past_speeds(tmp_path) == {"depth": 2.0, "edge": 0.5}


def test_a_damaged_note_begins_a_new_job(tmp_path):
    with Ledger(tmp_path, WORK) as ledger:
        do(ledger, "depth")
    (tmp_path / "run.json").write_text('{"id": "cut o')
    with Ledger(tmp_path, WORK) as ledger:
        assert not ledger.marked("depth")
