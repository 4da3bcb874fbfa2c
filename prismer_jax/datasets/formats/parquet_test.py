import io
import json
import pickle
import sys

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prismer_jax import datasets, label_files, labels
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import parquet as tables
from tools import build_dataset, visualize


def jpeg(level):
    out = io.BytesIO()
    Image.fromarray(np.full((32, 40, 3), level, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def photo(level):
    return {"bytes": jpeg(level), "path": "image.jpg"}  # all of one name, as `datasets` often has them


def write(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


@pytest.fixture
def captions(tmp_path):
    """data/train-0.parquet and train-1.parquet of five captions each, in row groups of two."""
    (tmp_path / "data").mkdir()
    for part in range(2):
        rows = [{"image": photo(i), "caption": f"{part} {i}", "url": "of no use"} for i in range(5)]
        write(tmp_path / f"data/train-{part}.parquet", rows, row_group_size=2)
    return tmp_path / "data"


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"image": photo(1), "question": "what?", "answers": [{"answer": "red"}], "question_id": 7},
        {"image": photo(2), "question": None, "answers": [], "question_id": None},
        {"image": photo(3), "question": "who?", "answers": [{"answer": "a"}, {"answer": "b"}], "question_id": 9},
    ]
    write(tmp_path / "vqa.parquet", rows, row_group_size=1)
    return tmp_path / "vqa.parquet"


def test_captions_of_a_folder(captions):
    source = datasets.load("parquet", path=captions)
    assert len(source) == 10
    assert source[7] == {"id": "train-1/000000002", "image": jpeg(2), "captions": ["1 2"]}
    assert source.name(9) == "train-1/000000004"
    assert pickle.loads(pickle.dumps(source))[3] == source[3]
    assert source.fingerprint == datasets.load("parquet", path=captions).fingerprint
    assert [len(datasets.load("parquet", path=captions, limit=limit)) for limit in (3, 7)] == [3, 7]
    assert len(datasets.load("parquet", path=f"{captions}/*-1.parquet")) == 5
    whole = datasets.load("parquet", path=captions / "train-0.parquet", task="all", source="mine")[0]
    assert (whole["source"], whole["captions"], whole["questions"]) == ("mine", ["0 0"], [])
    with pytest.raises(UserError, match=r"no column for the task 'question', such as 'question'.* image, caption, url"):
        datasets.load("parquet", path=captions, task="question")


def test_linked_folders_are_followed_once(captions, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all/linked").symlink_to(captions)
    (tmp_path / "all/loop").symlink_to(tmp_path / "all")
    assert len(datasets.load("parquet", path=tmp_path / "all")) == 10


def test_a_table_that_is_given_twice_is_read_once(captions):
    tables = [captions, captions / "train-1.parquet", captions / "../data/train-0.parquet"]
    source = datasets.load("parquet", path=tables)
    assert len({source[i]["id"] for i in range(len(source))}) == len(source) == 10


def test_memory_for_row_groups_is_bounded(captions, monkeypatch):
    monkeypatch.setattr(tables, "KEPT_BYTES", 1)
    source = datasets.load("parquet", path=captions)
    assert [source[i]["captions"] for i in (0, 9, 0)] == [["0 0"], ["1 4"], ["0 0"]]
    assert len(tables._kept) == 1


def test_questions_are_counted_without_photos(questions):
    source = datasets.load("parquet", path=questions)
    assert len(source) == 2
    assert [(one["id"], one["photo"]) for one in source] == [("7", "vqa/000000000"), ("9", "vqa/000000002")]
    assert source[0]["answers"] == ["red"] * 10
    assert source[1]["image"] == jpeg(3)
    assert [len(datasets.load("parquet", path=questions, limit=limit)) for limit in (1, 2)] == [1, 2]
    assert [len(one["questions"]) for one in datasets.load("parquet", path=questions, task="all")] == [1, 0, 1]


@pytest.mark.parametrize("empty", [None, float("nan"), "  "])
def test_photos_without_a_caption_stay(tmp_path, empty):
    column = pyarrow.array(["one", None], pyarrow.string()) if empty is None else None
    table = {"image": [photo(1), photo(2)], "text": column if column is not None else [empty, empty]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    assert datasets.load("parquet", path=tmp_path / "a.parquet")[1]["captions"] == []


def test_rows_that_cannot_be_used_are_named(tmp_path):
    rows = [{"image": None, "text": "a"}, {"image": {"bytes": None, "path": "b.jpg"}, "text": "b"}]
    write(tmp_path / "a.parquet", [*rows, {"image": photo(1), "text": "c"}])
    source = datasets.load("parquet", path=tmp_path / "a.parquet")
    with pytest.raises(BadSample, match=r"a\.parquet: row 0: has no photo"):
        source[0]
    assert source[1]["image"] == str(tmp_path / "b.jpg")  # a path alone is a file beside the table
    write(tmp_path / "n.parquet", [{"image": photo(1), "text": 5}])
    (example,) = datasets.load("parquet", path=tmp_path / "n.parquet", task="all")
    assert example["left_out"] == [("caption that is not a text", f"{tmp_path}/n.parquet: row 0")]


def test_texts_in_columns_that_nobody_reads_are_named(tmp_path, caplog, capsys):
    rows = [{"jpg": photo(i), "txt": "a dog", "tags": ["a", "b"], "__key__": "1", "url": "u", "n": 1} for i in (1, 2)]
    write(tmp_path / "web.parquet", rows)
    reasons = {f"text under `{key}`, which is not read (`caption` and `answers` are)": 2 for key in ("tags", "txt")}
    assert datasets.load("parquet", path=tmp_path / "web.parquet", task="all").dropped.counts == reasons
    assert "web.parquet: left out: 2 x text under `txt`, which is not read" in caplog.text
    build_dataset.main(
        ["--parquet", str(tmp_path / "web.parquet"), "--output", str(tmp_path / "a"), "--processes", "1"]
    )
    assert "2 x text under `txt`" in capsys.readouterr().out
    write(tmp_path / "asked.parquet", [{"image": photo(1), "question": "q?", "gt": "red"}])
    assert "`gt`" in next(iter(datasets.load("parquet", path=tmp_path / "asked.parquet").dropped.counts))
    write(tmp_path / "said.parquet", [{"image": photo(1), "caption": "a dog", "alt_text": "dog"}])
    assert not datasets.load("parquet", path=tmp_path / "said.parquet").dropped


def test_what_is_no_table_of_photos_is_named(tmp_path, monkeypatch):
    write(tmp_path / "list.parquet", [{"image": "a.jpg", "caption": "one"}])
    with pytest.raises(UserError, match=r"list\.parquet: has no column of photos .*columns are image, caption"):
        datasets.load("parquet", path=tmp_path / "list.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"bad\.parquet: cannot be read"):
        datasets.load("parquet", path=tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"none\.parquet: no such file; it takes Parquet"):
        datasets.load("parquet", path=tmp_path / "none.parquet")
    write(tmp_path / "empty.parquet", [{"image": photo(1), "text": "a"}][:0] or [{"image": photo(1)}])
    with pytest.raises(UserError, match=r"has no column for the task 'caption'"):
        datasets.load("parquet", path=tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"labels: no such folder of labels"):
        datasets.load("parquet", path=tmp_path / "empty.parquet", labels=tmp_path / "labels")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_again = tmp_path / "new.parquet"
    write_again.write_bytes((tmp_path / "list.parquet").read_bytes())
    with pytest.raises(UserError, match=r"new\.parquet: pip install 'prismer_jax\[data\]'"):
        datasets.load("parquet", path=write_again)


def test_tables_are_read_where_they_lie():
    system, out = fsspec.filesystem("memory"), io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([{"image": photo(3), "caption": "far away"}]), out)
    system.pipe_file("/hub/far/data/train-0.parquet", out.getvalue())
    system.pipe_file("/hub/far/data/test-0.parquet", out.getvalue())
    assert len(datasets.load("parquet", path="memory://hub/far")) == 2
    (example,) = datasets.load("parquet", path="memory://hub/far/data/train-*")
    assert example == {"id": "train-0/000000000", "image": jpeg(3), "captions": ["far away"]}


def test_tables_become_records(captions, tmp_path):
    for name in ("train-0/000000002", "train-1/000000001"):
        label_files.write(tmp_path / "labels", "edge", name, labels.blank("edge", 32, 40))
    given = ["--parquet", str(captions), "--labels", str(tmp_path / "labels")]
    build_dataset.main([*given, "--output", str(tmp_path / "shards"), "--processes", "1", "--shard-size", "4"])
    records = datasets.load("records", path=tmp_path / "shards", task="caption")
    assert [records[i]["captions"] for i in (0, 9)] == [["0 0"], ["1 4"]]
    assert ["labels/edge" in records[i] for i in (2, 3, 6)] == [True, False, True]
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert manifest["made_from"]["parquet"] == [str(captions)]
    visualize.main(["--parquet", str(captions), "--processes", "1", "--num", "2", "--output", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file()
