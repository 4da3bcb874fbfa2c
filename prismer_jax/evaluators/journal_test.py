import json

import pytest

from prismer_jax.evaluators.journal import Journal

HEADER = {"weights": "abc", "config": {"b": 1, "a": [2]}}


def entries(*numbers):
    return [{"index": n, "said": f"café {n}"} for n in numbers]


def write(folder, numbers, process=0, count=1, header=HEADER, name="vqa"):
    with Journal(folder, name, header, process, count) as journal:
        journal.read()
        journal.write(entries(*numbers))


def read(folder, process=0, count=1, header=HEADER, name="vqa"):
    return Journal(folder, name, header, process, count).read()


def test_what_was_written_is_read_by_a_later_start_which_appends(tmp_path):
    write(tmp_path, [0, 1])
    write(tmp_path, [2])
    assert read(tmp_path) == entries(0, 1, 2)
    assert len((tmp_path / "vqa.0.jsonl").read_text().splitlines()) == 4  # one header


def test_nothing_is_made_by_reading(tmp_path):
    assert read(tmp_path / "partial") == []
    assert not (tmp_path / "partial").exists()


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_another_number_of_processes_reads_all_of_it_once(tmp_path, count):
    for process in range(4):
        write(tmp_path, [process, 10 + process], process, 4)
    shares = [read(tmp_path, process, count) for process in range(count)]
    assert sorted(e["index"] for share in shares for e in share) == [0, 1, 2, 3, 10, 11, 12, 13]
    if count == 4:
        assert shares == [entries(n, 10 + n) for n in range(4)]


@pytest.mark.parametrize(
    "other",
    [{**HEADER, "weights": "abd"}, {**HEADER, "config": {"b": 1, "a": [3]}}, {**HEADER, "more": 1}],
)
def test_another_checkpoint_or_config_is_never_mixed_in(tmp_path, other, caplog):
    write(tmp_path, [0, 1])
    assert read(tmp_path, header=other) == []
    assert "begun anew" in caplog.text
    write(tmp_path, [5], header=other)
    assert read(tmp_path, header=other) == entries(5)


def test_evaluators_whose_names_begin_alike_have_their_own(tmp_path):
    write(tmp_path, [0], name="vqa")
    write(tmp_path, [1], name="vqa.rank")
    assert read(tmp_path, name="vqa") == entries(0)
    assert read(tmp_path, name="vqa.rank") == entries(1)


def test_a_file_cut_anywhere_gives_its_whole_lines_and_is_continued(tmp_path):
    write(tmp_path, [0, 1, 2])
    file = tmp_path / "vqa.0.jsonl"
    whole = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]  # of the header and of three entries
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        kept = sum(cut >= end for end in ends[1:])
        assert read(tmp_path) == entries(*range(kept))
        write(tmp_path, [7])
        assert read(tmp_path) == [*entries(*range(kept)), *entries(7)]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\n", b'{"index": 1, "sa\n', b"3\n", b"\xff\xfe\n", b"\n"])
def test_a_damaged_line_ends_what_is_taken(tmp_path, damage):
    write(tmp_path, [0])
    with (tmp_path / "vqa.0.jsonl").open("ab") as file:
        file.write(damage + json.dumps(entries(2)[0]).encode() + b"\n")
    assert read(tmp_path) == entries(0)
    write(tmp_path, [1])
    assert read(tmp_path) == entries(0, 1)


def test_discard_leaves_other_evaluators_and_removes_an_empty_folder(tmp_path):
    folder = tmp_path / "partial"
    for process in range(3):
        write(folder, [process], process, 3)
    write(folder, [9], name="caption")
    Journal(folder, "vqa", HEADER).discard()
    assert [path.name for path in folder.iterdir()] == ["caption.0.jsonl"]
    Journal(folder, "caption", HEADER).discard()
    assert not folder.exists()
    Journal(folder, "never", HEADER).discard()
