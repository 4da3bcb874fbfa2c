import dataclasses
import errno
import os
import pathlib
import signal
import subprocess
import sys
import time
import zlib

import pytest

from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage
from prismer_jax.files.leases import Leases
from prismer_jax.shards import build, metadata, reader, records, writer
from prismer_jax.shards.reader_test import EXPERTS, example


class Photos:
    """A source of so many photos; photo 3 is missing."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if index == 3:
            raise BadSample("3.jpg: No such file.", "missing photo")
        return example(index, index % 3)


def plan_for(folder: pathlib.Path | str, count: int = 10, **change) -> build.Plan:
    plan = build.Plan(
        folder=str(folder),
        name="photos",
        split="train",
        experts=EXPERTS,
        count=count,
        shard_size=4,
        max_side=None,
        made_from={"names": build.names(Photos(count))},
    )
    return dataclasses.replace(plan, **change)


def ids(folder: pathlib.Path) -> list[str]:
    source = records.load(folder, "all")
    return [source[i]["id"] for i in range(len(source))]


def times(folder: pathlib.Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.array_record-*") if path.suffix != ".json"}


WANTED = [f"photo {i}" for i in range(10) if i != 3]


def test_all_shards_are_made_and_then_none_again(tmp_path):
    plan = plan_for(tmp_path / "set")
    made = build.build(plan, Photos(10))
    assert [row.records for row in made.shards] == [3, 4, 2]
    assert metadata.dropped(made).counts == {"missing photo": 1}
    assert ids(tmp_path / "set") == WANTED
    before = times(tmp_path / "set")
    assert build.build(plan, None) == made  # the source is not even asked
    assert times(tmp_path / "set") == before
    assert os.listdir(tmp_path / "set" / ".leases") == []
    assert not list((tmp_path / "set").glob("*.tmp"))


def test_only_what_is_missing_or_damaged_is_made_again(tmp_path):
    plan = plan_for(tmp_path)
    build.build(plan, Photos(10))
    before = times(tmp_path)
    (tmp_path / plan.file(0)).write_bytes(b"cut off")
    (tmp_path / f"{plan.file(1)}.json").unlink()
    (tmp_path / f".{plan.file(1)}.0a1b.tmp").write_bytes(b"of a killed process")
    build.build(plan, Photos(10))
    after = times(tmp_path)
    assert [before[plan.file(k)] == after[plan.file(k)] for k in range(3)] == [False, False, True]
    assert ids(tmp_path) == WANTED
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shard_size": 5}, "shard_size was 4, now it is 5"),
        ({"count": 11}, "count was 10"),
        ({"max_side": 64}, "max_side was null, now it is 64"),
        ({"experts": ("depth",)}, "experts was"),
        ({"made_from": {"names": "0a1b"}}, r"made_from\.names was \S+, now it is .0a1b."),
        ({"made_from": {}}, r"made_from\.names was \S+, now it is null"),
    ],
)
def test_a_folder_keeps_to_one_data_set(tmp_path, change, what):
    build.claim(plan_for(tmp_path))
    with pytest.raises(UserError, match=f"holds shards of another data set .{what}.*Choose another --output"):
        build.claim(plan_for(tmp_path, **change))


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_a_damaged_plan_is_reported(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: is damaged. Delete the folder"):
        build.claim(plan_for(tmp_path))


def test_several_processes_make_each_shard_once(tmp_path):
    program = f"""if True:
        import sys, os
        from prismer_jax.shards import build, writer
        from prismer_jax.shards.build_test import *
        original = writer.write_shard
        def noted(examples, folder, file, **options):
            row = original(examples, folder, file, **options)
            os.close(os.open(os.path.join({str(tmp_path)!r}, "made", f"{{file}}.{{os.getpid()}}"), os.O_CREAT))
            return row
        build.write_shard = noted
        build.build(plan_for({str(tmp_path / "set")!r}, 40), Photos(40), processes=2)
    """
    (tmp_path / "made").mkdir()
    hosts = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(2)]
    for host in hosts:
        _, errors = host.communicate(timeout=120)
        assert host.returncode == 0, errors.decode()
    made = sorted(path.name.rpartition(".")[0] for path in (tmp_path / "made").iterdir())
    assert made == [plan_for("", 40).file(k) for k in range(10)]
    assert ids(tmp_path / "set") == [f"photo {i}" for i in range(40) if i != 3]


SLOW = """if True:
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell runs in the background ignore it
    from prismer_jax.shards import ingest
    from prismer_jax.shards.build_test import *
    original = ingest.prepare
    def slow(*arguments):
        time.sleep(0.01)
        return original(*arguments)
    ingest.prepare = slow
    build.build(plan_for(sys.argv[1], 200), Photos(200), processes=2)
"""


def test_kill_9_in_the_middle_loses_nothing_that_was_whole(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], start_new_session=True)
    while len(list(tmp_path.glob("*.json"))) < 4:  # the plan, and the rows of three shards
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    group = process.pid
    for _ in range(500):  # the workers end with their parent
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("workers are left")
    plan = plan_for(tmp_path, 200)
    whole = {plan.file(k) for k in range(plan.shards)} - {plan.file(k) for k in plan.missing()}
    assert 3 <= len(whole) < plan.shards
    with pytest.raises(UserError, match="no finished data set"):
        records.load(tmp_path)
    before = times(tmp_path)
    build.build(plan, Photos(200))
    after = times(tmp_path)
    assert {name for name in whole if before[name] == after[name]} == whole
    assert ids(tmp_path) == [f"photo {i}" for i in range(200) if i != 3]
    assert not list(tmp_path.glob("*.tmp"))


def test_ctrl_c_ends_the_workers_and_leaves_nothing_half_written(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stderr=subprocess.PIPE, process_group=0)
    while not list(tmp_path.glob("*.json"))[1:]:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.decode().count("Traceback") == 1  # the program's own; tools turn it into a line
    assert not list(tmp_path.glob(".*.tmp"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_lost_lease_leaves_the_shard_to_the_other_process(tmp_path, monkeypatch):
    plan = plan_for(tmp_path)
    original = writer.write_shard
    lost = []

    def slow(examples, folder, file, **options):
        if not lost:  # this process was taken for dead, and another has the lease
            lost.append(file)
            name = Leases(tmp_path / build.LEASES).file(file, 1)
            name.unlink()
            name.with_name(f"{file}.2.lease").write_text("{}")
            os.utime(name.with_name(f"{file}.2.lease"), (0, 0))
        return original(examples, folder, file, **options)

    monkeypatch.setattr(build, "write_shard", slow)
    build.build(plan, Photos(10))
    assert lost == [plan.file(0)]
    assert ids(tmp_path) == WANTED


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/set: cannot be written .Not a directory.. Choose another --output"):
        build.claim(plan_for(tmp_path / "file" / "set"))

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(storage, "write", read_only)
    with pytest.raises(UserError, match=r"cannot be written .Read-only file system.. Choose another --output"):
        build.claim(plan_for(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be written .Permission denied"):
        build.claim(plan_for(tmp_path / "set"))


def test_a_worker_that_is_killed_costs_nothing_if_another_is_left(tmp_path):
    program = SLOW.replace(
        "    ingest.prepare = slow\n",
        """
    from prismer_jax.shards import writer
    write = build.write_shard
    def deadly(examples, folder, file, **options):
        if file == plan_for("", 200).file(0) and not os.path.exists(sys.argv[1] + "/killed"):
            open(sys.argv[1] + "/killed", "w").close()
            os.kill(os.getpid(), 9)
        return write(examples, folder, file, **options)
    build.write_shard = deadly
""",
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "killed").exists()
    assert len(ids(tmp_path)) == 199


def test_workers_that_all_die_are_reported(tmp_path):
    program = """if True:
        import sys
        from prismer_jax.shards.build_test import *
        build.write_shard = lambda *_, **__: os.kill(os.getpid(), 9)
        try:
            build.build(plan_for(sys.argv[1]), Photos(10), processes=2)
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True)
    assert "worker processes died (exit status -9), out of memory perhaps. Run it again" in done.stdout


def test_an_error_of_a_worker_ends_all_of_them(tmp_path):
    program = """if True:
        import sys
        from prismer_jax.shards.build_test import *
        def full(*_, **__):
            raise UserError("a: cannot be written (No space left on device).")
        build.write_shard = full
        try:
            build.build(plan_for(sys.argv[1]), Photos(10), processes=2)
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout == "a: cannot be written (No space left on device).\n"
    assert done.stderr == ""


def test_a_remote_folder_is_built_without_leases(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    made = build.build(plan_for("memory://bucket/built"), Photos(10))
    assert made.records == 9
    assert ids("memory://bucket/built") == WANTED
    assert not [name for name in storage.names("memory://bucket/built") if name.startswith(".")]


def test_another_source_of_the_same_length_has_other_names():
    class Others(Photos):
        def __getitem__(self, index):
            return example(index + 1)

    assert build.names(Photos(10)) == build.names(Photos(10)) != build.names(Others(10))


def test_an_estimate_is_that_of_the_records(tmp_path):
    sample = build.measure(Photos(10), EXPERTS, None)
    made = build.build(plan_for(tmp_path), Photos(10))
    assert sample.count == 10
    assert sample.dropped.counts == {"missing photo": 1}
    stored = reader.Shards(str(tmp_path))
    assert sample.bytes == sum(len(zlib.compress(stored[i], 1)) for i in range(made.records)) / 10
