import numpy as np
import pytest

from prismer_jax import label_files
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage
from prismer_jax.shards import check, metadata, writer
from prismer_jax.shards.reader_test import EXPERTS, example, jpeg, write


def problems(capsys, folder, processes: int = 1) -> str:
    assert not check.check(str(folder), processes)
    return " ".join(capsys.readouterr().out.split())


def test_a_whole_data_set_has_no_problems(tmp_path, capsys):
    empty = dict(example(3), **{"labels/depth": b""})
    write(tmp_path, [example(0, 2), example(1)], [example(2, 1), empty])
    assert check.check(str(tmp_path))
    out = capsys.readouterr().out
    assert f"{tmp_path}: whole, 4 records in 2 shards" in out
    row = next(line for line in out.splitlines() if "all" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]][1:4] == ["4", "8", "3"]
    assert "4 (1)" in row  # depth: four labels, one of them empty


def test_a_shard_with_other_bytes_is_found(tmp_path, capsys):
    row = write(tmp_path, [example(0), example(1)], [example(2)]).shards[0]
    data = bytearray((tmp_path / row.file).read_bytes())
    data[200] ^= 255  # in the first record
    (tmp_path / row.file).write_bytes(data)
    out = problems(capsys, tmp_path)
    assert "checksum" in out
    assert row.file in out


def test_a_cut_off_and_a_missing_shard_are_found(tmp_path, capsys):
    rows = write(tmp_path, [example(0)], [example(1)], [example(2)]).shards
    (tmp_path / rows[0].file).unlink()
    (tmp_path / rows[1].file).write_bytes(b"")
    out = problems(capsys, tmp_path)
    assert f"{rows[0].file}: the shard is missing" in out
    assert "2 problems" in out


def test_an_id_in_two_shards_is_found(tmp_path, capsys):
    write(tmp_path, [example(0), example(1)], [example(2), example(1)])
    out = problems(capsys, tmp_path)
    assert "duplicate id" in out
    assert "record 1: 'photo 1' is also that of" in out


def test_an_id_in_two_shards_is_found_behind_a_record_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    sound = writer.schema.serializer(EXPERTS)
    garbled = lambda values: b"\xff\xff no record" if values["id"] == "photo 0" else sound(values)  # noqa: E731
    monkeypatch.setattr(writer.schema, "serializer", lambda experts: garbled)
    first, second = write(tmp_path, [example(0), example(1)], [example(2), example(1)]).shards
    out = problems(capsys, tmp_path)
    assert "unreadable record" in out
    assert f"{second.file}, record 1: 'photo 1' is also that of {first.file}, record 1." in out


def test_remote_data_sets_are_checked_where_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    row = write("memory://bucket/checked", [example(0), example(1)]).shards[0]
    assert check.check("memory://bucket/checked")
    path = f"memory://bucket/checked/{row.file}"
    assert writer.sha256(path) == row.sha256
    storage.write(path, storage.read(path)[:-1])
    assert "the shard is damaged" in problems(capsys, "memory://bucket/checked")


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match=r"no manifest.json: no finished data set"):
        check.check(str(tmp_path))


def test_a_manifest_that_counts_otherwise_is_found(tmp_path, capsys):
    write(tmp_path, [example(0, 2), example(1)])
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"questions": [2, 0]', '"questions": [1, 1]'))
    assert "are not as many as the manifest says" in problems(capsys, tmp_path)


def unchecked(monkeypatch, folder, **change) -> None:
    """A data set whose one record was never looked at: what another program, or an older one, may have written."""
    map = label_files.encode(np.zeros((6, 8, 1), np.uint8))
    arguments = {
        "id": "x",
        "image": jpeg(0),
        "labels": {"depth": map, "obj_detection": map, "ocr_detection": map},
        "experts": EXPERTS,
        "classes": [7],
        "words": ["stop"],
        "word_features": np.ones((1, 64)),
    }
    with monkeypatch.context() as patch:
        patch.setattr(writer.ingest, "prepare", lambda *_: {"captions": [], "questions": []} | arguments | change)
        row = writer.write_shard([{}], folder, metadata.shard_name("x", "train", 0, 1), experts=EXPERTS)
    metadata.finish(str(folder), name="x", split="train", experts=EXPERTS, rows=[row], made_from={}, labels={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b"no photo"}, "not a readable image"),
        ({"image": jpeg(0, (8, 6))}, "does not fit"),
        ({"classes": []}, "instance 0 has class -1, not one of 0..721"),
        ({"classes": [722]}, "instance 0 has class 722, not one of 0..721"),
        ({"words": []}, "word 0 of the map is none of its 0 words"),
        ({"word_features": np.full((1, 64), np.nan)}, "not finite"),
    ],
)
def test_a_record_that_does_not_fit_together_is_found(tmp_path, capsys, monkeypatch, change, message):
    unchecked(monkeypatch, tmp_path, **change)
    out = problems(capsys, tmp_path)
    assert message in out
    assert "1 problems" in out


def test_bytes_that_are_no_record_are_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(writer.schema, "serializer", lambda experts: lambda values: b"\xff\xff no record")
    row = writer.write_shard([example(0)], tmp_path, "x-train.array_record-00000-of-00001", experts=EXPERTS)
    metadata.finish(str(tmp_path), name="x", split="train", experts=EXPERTS, rows=[row], made_from={}, labels={})
    assert "unreadable record" in problems(capsys, tmp_path)


def test_class_ids_beyond_the_table_are_found():
    wild = label_files.encode(np.full((6, 8, 1), 200, np.uint8))
    with pytest.raises(BadSample, match="beyond the 133"):
        check.check_example({"id": "x", "image": jpeg(0), "labels/seg_coco": wild, "questions": []})
