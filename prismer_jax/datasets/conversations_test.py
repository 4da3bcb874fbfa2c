"""Conversations in the Cauldron's and FineVision's layout: forms of photos, ratings, limits, files that are none."""

import base64
import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prismer_jax import datasets, pp
from prismer_jax.datasets import data_seen
from prismer_jax.errors import BadSample, UserError

SAID = [{"user": "What?", "assistant": "A dog.", "source": "here"}, {"user": "Why?", "assistant": "So."}]


@pytest.fixture
def png(tmp_path):
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def lines(folder, *rows):
    path = folder / "talks.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(path, **options):
    return datasets.load("conversations", path=path, **options)


def decoded(example):
    return pp.build("decode")(example, np.random.default_rng(0))["image"]


def test_photos_are_paths_bytes_or_both_none_one_or_several(tmp_path, png):
    text = base64.b64encode(png).decode()
    forms = [
        "one.png",
        ["one.png", {"bytes": None, "path": "one.png"}],
        [{"bytes": text, "path": "gone.png"}],
        [],
        None,
    ]
    source = load(lines(tmp_path, *({"images": images, "texts": SAID} for images in forms)))
    counts = [len(decoded(source[i])) for i in range(len(source))]
    assert counts == [1, 2, 1, 0, 0]
    assert all(image.shape == (4, 6, 3) for i in range(3) for image in decoded(source[i]))
    assert source[1]["turns"] == [{"user": "What?", "assistant": "A dog."}, {"user": "Why?", "assistant": "So."}]
    assert source[3]["id"] == "talks/3"
    both = load(lines(tmp_path, {"images": None, "image": "one.png", "texts": SAID}))  # tables of two kinds in one
    assert len(decoded(both[0])) == 1


def test_a_bad_photo_of_several_is_named(tmp_path, png):
    source = load(lines(tmp_path, {"images": ["one.png", "gone.png"], "texts": SAID}))
    with pytest.raises(BadSample, match=r"gone.png: No such file"):
        decoded(source[0])


def test_parquet_folders_are_read_by_row_groups(tmp_path, png):
    for part in range(2):
        rows = [
            {"images": [{"bytes": png, "path": None}] * (i % 3), "texts": [{"user": f"{part}{i}", "assistant": "a"}]}
            for i in range(10)
        ]
        (tmp_path / "data").mkdir(exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / f"data/train-{part}.parquet", row_group_size=4)
    source = load(tmp_path)
    assert len(source) == 20
    assert [source[i]["turns"][0]["user"] for i in (0, 3, 4, 9, 10, 19)] == ["00", "03", "04", "09", "10", "19"]
    assert [len(decoded(source[i])) for i in (10, 11, 12)] == [0, 1, 2]


def test_samples_of_files_of_one_name_have_ids_of_their_own(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder, {"texts": SAID}, {"texts": SAID})
    parquet.write_table(pyarrow.Table.from_pylist([{"texts": SAID}]), tmp_path / "one/talks.parquet")
    one, two = tmp_path / "one/talks.jsonl", tmp_path / "two/talks.jsonl"
    table = tmp_path / "one/talks.parquet"
    for paths, names in (
        ([one], ["talks/0", "talks/1"]),
        ([one, two], ["one/talks.jsonl/0", "one/talks.jsonl/1", "two/talks.jsonl/0", "two/talks.jsonl/1"]),
        ([one, table], ["talks.jsonl/0", "talks.jsonl/1", "talks.parquet/0"]),
        ([one, one], ["talks.jsonl/0", "talks.jsonl/1", "talks.jsonl#2/0", "talks.jsonl#2/1"]),
    ):
        source = load(paths)
        assert [source[i]["id"] for i in range(len(source))] == names
        assert load(paths, limit=1)[0]["id"] == names[0]
    assert len({example["id"] for example in map(load(tmp_path).__getitem__, range(5))}) == 5


def test_a_limit_reads_no_further(tmp_path):
    table = pyarrow.Table.from_pylist([{"images": [], "texts": SAID}] * 3)
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"of another day")
    assert len(load(tmp_path, limit=2)) == 2
    assert len(load(tmp_path, limit=3)) == 3
    with pytest.raises(UserError, match=r"b.parquet: cannot be read"):
        load(tmp_path, limit=4)


def test_low_ratings_are_filtered_and_missing_ones_are_not(tmp_path):
    rows = [
        {"texts": SAID, "relevance_ratings": [5, 2], "formatting_ratings": [1, 5]},
        {"texts": SAID, "relevance_ratings": [None, 1]},
        {"texts": SAID, "relevance_ratings": [2, 2]},
    ]
    path = lines(tmp_path, *rows)
    assert [len(load(path)[i]["turns"]) for i in range(3)] == [2, 2, 2]
    source = load(path, relevance=3)
    assert [turn["user"] for turn in source[0]["turns"] + source[1]["turns"]] == ["What?", "What?"]
    with pytest.raises(BadSample, match="no text has the ratings") as caught:
        source[2]
    assert caught.value.reason == "low ratings"
    assert [turn["user"] for turn in load(path, formatting=2)[0]["turns"]] == ["Why?"]
    with pytest.raises(UserError, match=r"has no visual_dependency_ratings. Leave visual_dependency out"):
        load(path, visual_dependency=2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "sample 0: Expecting"),
        ("[" * 100_000, "maximum recursion depth"),
        ("3", "is int, not an object"),
        ({"texts": []}, "has no texts"),
        ({"texts": [{"user": "a"}]}, "text 0 has no user and assistant"),
        ({"texts": SAID, "relevance_ratings": [5, "high"]}, "relevance rating of text 1 is 'high', no number"),
        ({"texts": SAID, "images": [3]}, "is int, neither a path nor bytes"),
        ({"texts": SAID, "images": [{"bytes": "?", "path": None}]}, "no base64"),
    ],
)
def test_bad_samples_say_what_is_wrong(tmp_path, row, message):
    source = load(lines(tmp_path, {"texts": SAID}, row))
    assert source[0]["turns"]
    with pytest.raises(BadSample, match=message.replace("sample 0", "sample 1")):
        source[1]


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.jsonl: no such file"):
        load(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"has no file of JSON lines"):
        load(tmp_path)
    with pytest.raises(UserError, match="has no samples"):
        load(lines(tmp_path))


def test_what_it_is_made_of_changes_with_files_and_settings(tmp_path, monkeypatch):
    path = lines(tmp_path, {"texts": SAID})
    first = load(path).made_of
    assert load(path).made_of == first
    assert load(path, images=tmp_path).made_of != first
    monkeypatch.chdir(tmp_path)
    assert load(path, images=".").made_of == load(path, images=tmp_path).made_of
    lines(tmp_path, {"texts": SAID}, {"texts": SAID})
    assert load(path).made_of != first


@pytest.fixture
def store(monkeypatch):
    """Two remote files of eight row groups each, and how many bytes are read of which."""
    import io

    from fsspec.implementations import memory

    system, read = memory.MemoryFileSystem(), {}
    rng, rows = np.random.default_rng(0), []
    for number in range(32):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(out, "png")
        said = [{"user": f"{number}?", "assistant": "a", "source": "x" * 1000}]
        rows.append({"images": [{"bytes": out.getvalue(), "path": None}], "texts": said, "junk": rng.bytes(9000)})
    for part in range(2):
        table, out = pyarrow.Table.from_pylist(rows[16 * part : 16 * part + 16]), io.BytesIO()
        parquet.write_table(table, out, row_group_size=2, compression="none")
        system.pipe_file(f"/hub/a/b/train-{part}.parquet", out.getvalue())
    system.pipe_file("/hub/a/README.md", b"none")

    def counting(self, size=-1, plain=memory.MemoryFile.read):
        data = plain(self, size)
        read[self.path] = read.get(self.path, 0) + len(data)
        return data

    monkeypatch.setattr(memory.MemoryFile, "read", counting)
    yield read
    system.rm("/hub", recursive=True)


def test_of_remote_files_only_what_is_needed_is_read(store):
    size = 16 * (64 * 64 * 3 + 9000 + 1000)  # about, of a file
    source = load("memory://hub/a", limit=3)
    assert len(source) == 3
    assert set(store) == {"/hub/a/b/train-0.parquet"}
    assert [source[i]["turns"][0]["user"] for i in range(3)] == ["0?", "1?", "2?"]
    assert decoded(source[0])[0].shape == (64, 64, 3)
    assert source[2]["id"] == "train-0/2"
    footer = store["/hub/a/b/train-0.parquet"] - 2 * 2 * 64 * 64 * 3
    assert 0 < footer < 2 * 65536 + 10_000  # the end of a file is read in 64 KiB; two of eight groups, without `junk`
    store.clear()
    whole = load("memory://hub/a")
    assert (len(whole), whole[31]["turns"][0]["user"]) == (32, "31?")
    assert store["/hub/a/b/train-1.parquet"] < 0.55 * size
    assert whole.made_of != source.made_of
    store.clear()
    assert data_seen.fingerprint(whole) != data_seen.fingerprint(source)
    assert not store


def test_remote_folders_without_parquet_are_named():
    with pytest.raises(UserError, match=r"memory://nowhere: has no Parquet file"):
        load("memory://nowhere")
