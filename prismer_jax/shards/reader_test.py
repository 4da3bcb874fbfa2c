import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import fsspec
import numpy as np
import pytest
from array_record.python import array_record_module

from prismer_jax import datasets, label_files, label_png, labels
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage
from prismer_jax.shards import manifest, metadata, reader, records, writer

EXPERTS = ("depth", "obj_detection", "ocr_detection")


def jpeg(value: int, size: tuple[int, int] = (6, 8)) -> bytes:
    return cv2.imencode(".jpg", np.full((*size, 3), value, np.uint8))[1].tobytes()


def example(number: int, questions: int = 0) -> dict:
    map = np.full((6, 8, 1), 255, np.uint8)
    map[:2] = 0
    classes, features = labels.no_classes(), labels.no_words()
    classes[0], features[0] = 7, number / 8
    return {
        "id": f"photo {number}",
        "name": f"train/{number}.jpg",
        "image": jpeg(number),
        "source": "test",
        "domain": "near-domain" if number % 2 else "",
        "captions": [f"caption {number}", "ein Würfel"],
        "questions": [
            {"question": f"{number} {i}?", "answers": ["yes", "no"], "answer_weights": [0.75, 0.25], "weight": 0.5}
            | ({"question_id": 10 * number + i} if i % 2 == 0 else {})
            for i in range(questions)
        ],
        "labels/depth": map,
        "labels/obj_detection": label_files.encode(map),
        labels.CLASSES_KEY: classes,
        "labels/ocr_detection": map,
        labels.WORDS_KEY: features,
        "words": ["stop"],
    }


def write(folder: pathlib.Path | str, *groups: list, name: str = "photos") -> manifest.Manifest:
    """A finished data set with one shard for each group of examples."""
    storage.make_folder(storage.plain(folder))
    rows = [
        writer.write_shard(group, folder, metadata.shard_name(name, "train", i, len(groups)), experts=EXPERTS)
        for i, group in enumerate(groups)
    ]
    return metadata.finish(
        storage.plain(folder), name=name, split="train", experts=EXPERTS, rows=rows, made_from={}, labels={}
    )


def test_what_is_written_comes_back(tmp_path):
    made = write(tmp_path, [example(0, 2), example(1)], [example(2, 3)])
    assert [row.questions for row in made.shards] == [[2, 0], 3]
    source = datasets.load("records", path=tmp_path, task="all")
    assert len(source) == 3
    for number, questions in enumerate((2, 0, 3)):
        given, got = example(number, questions), source[number]
        for key in ("id", "name", "image", "source", "captions", "words"):
            assert got[key] == given[key]
        assert got.get("domain", "") == given["domain"]
        assert [q.get("question_id") for q in got["questions"]] == [q.get("question_id") for q in given["questions"]]
        assert [q["answer_weights"] for q in got["questions"]] == [[0.75, 0.25]] * questions
        for key in (labels.CLASSES_KEY, labels.WORDS_KEY):
            np.testing.assert_array_equal(got[key], given[key])
        for name in EXPERTS:
            np.testing.assert_array_equal(label_png.decode(name, got[f"labels/{name}"]), given["labels/depth"])


def test_there_is_one_item_a_question_however_many_each_record_has(tmp_path):
    write(tmp_path, [example(0, 2), example(1), example(2, 1)], [example(3)], [example(4, 3)])
    source = datasets.load("records", path=tmp_path, task="question")
    asked = [(source[i]["id"], source[i]["question"]) for i in range(len(source))]
    assert asked == [(f"photo {r}", f"{r} {i}?") for r, count in ((0, 2), (2, 1), (4, 3)) for i in range(count)]
    assert source[0]["weight"] == 0.5
    assert len(datasets.load("records", path=tmp_path, task="question", limit=4)) == 4
    with pytest.raises(IndexError):
        source[6]
    write(tmp_path / "captions", [example(1)])
    with pytest.raises(UserError, match="nothing for the task 'question'"):
        datasets.load("records", path=tmp_path / "captions", task="question")


def test_photos_without_captions_are_none_for_the_task_caption_unless_none_has_any(tmp_path):
    bare = dict(example(1, 1), captions=[])
    write(tmp_path / "mixed", [example(0), bare], [example(2)])
    source = datasets.load("records", path=tmp_path / "mixed", task="caption")
    assert [source[i]["id"] for i in range(len(source))] == ["photo 0", "photo 2"]
    assert len(datasets.load("records", path=tmp_path / "mixed", task="all")) == 3
    write(tmp_path / "bare", [bare])
    assert datasets.load("records", path=tmp_path / "bare", task="caption")[0]["captions"] == []


def test_tfds_reads_the_same_without_tensorflow(tmp_path):
    write(tmp_path, [example(0, 2), example(1)], [BadSample("gone", "missing photo")], [example(2, 1)])
    program = f"""if True:
        import sys
        import tensorflow_datasets as tfds
        skip = tfds.decode.SkipDecoding()
        decoders = {{"image": skip, "labels": dict.fromkeys({EXPERTS}, skip)}}
        builder = tfds.builder_from_directory({str(tmp_path)!r})
        theirs = builder.as_data_source(split="train", decoders=decoders)
        from prismer_jax import datasets
        ours = datasets.load("records", path={str(tmp_path)!r}, task="all")
        assert builder.info.splits["train"].num_examples == len(theirs) == len(ours) == 3
        for a, b in zip(theirs, (ours[i] for i in range(3))):
            assert (a["id"].decode(), a["image"], a["name"].decode()) == (b["id"], b["image"], b["name"])
            assert [text.decode() for text in a["captions"]] == b["captions"]
            assert [text.decode() for text in a["questions"]] == [q["question"] for q in b["questions"]]
            assert a["labels"]["depth"] == b["labels/depth"]
            assert a["labels"]["obj_detection_classes"] == [7]
            assert (a["labels"]["ocr_detection_features"] == b["labels/ocr_detection_features"][:1]).all()
        assert builder.as_data_source(split="train")[0]["image"].shape == (6, 8, 3)
        assert not {{"tensorflow", "jax", "torch"}} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_shard_has_the_same_bytes_whenever_it_is_written(tmp_path):
    first = write(tmp_path / "a", [example(0, 2), example(1)])
    program = f"""if True:
        from prismer_jax.shards.reader_test import *
        write({str(tmp_path / "b")!r}, [example(0, 2), example(1)])
    """
    subprocess.run([sys.executable, "-c", program], check=True)  # with another seed of Python's hashes
    assert manifest.read(str(tmp_path / "b")).shards == first.shards


def test_bad_samples_are_counted_by_reason(tmp_path):
    bad = dict(example(3), image=b"<html>not found</html>")
    twice = example(1)
    odd = dict(example(4), captions=["half a character \ud83d"])
    made = write(tmp_path, [example(1), BadSample("x.jpg: gone.", "missing photo"), bad, twice, odd])
    assert made.records == 1
    assert metadata.dropped(made).counts == {"duplicate id": 1, "missing photo": 1, "not Unicode": 1, "not an image": 1}
    found = manifest.read(str(tmp_path))
    assert found == made
    assert "photo 1" in "\n".join(metadata.dropped(found).lines())


def test_no_sample_of_use_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"not one sample could be used .*missing photo"):
        write(tmp_path, [BadSample("x", "missing photo")])
    assert manifest.read(str(tmp_path)) is None


def test_a_shard_that_is_cut_off_or_lacks_its_row_is_not_whole(tmp_path):
    row = write(tmp_path, [example(0)]).shards[0]
    shard, report = tmp_path / row.file, dataclasses.asdict(row)
    assert metadata.whole(str(tmp_path), row.file, report) == row
    for damaged in (None, {}, {"file": row.file}, report | {"captions": [1, 2, 3]}, report | {"file": "another"}):
        assert metadata.whole(str(tmp_path), row.file, damaged) is None
    shard.write_bytes(shard.read_bytes()[:-100])
    assert metadata.whole(str(tmp_path), row.file, report) is None
    with pytest.raises(UserError, match=f"{row.file}: the shard is damaged .* instead of .* Delete it"):
        datasets.load("records", path=tmp_path)[0]
    shard.unlink()
    assert metadata.whole(str(tmp_path), row.file, report) is None
    with pytest.raises(UserError, match="the shard is missing"):
        datasets.load("records", path=tmp_path)[0]


def test_bytes_that_are_not_a_shard_are_reported(tmp_path):
    row = write(tmp_path, [example(0)]).shards[0]
    (tmp_path / row.file).write_bytes(b"\x17" * row.bytes)
    with pytest.raises(UserError, match=f"{row.file}: the shard is damaged"):
        datasets.load("records", path=tmp_path)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "is damaged"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "has format 9"),
        (lambda text: text.replace('"sha256"', '"sha"'), "is damaged"),
        (lambda text: "[]", "has format None"),
    ],
)
def test_a_damaged_manifest_is_reported(tmp_path, change, message):
    write(tmp_path, [example(0)])
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=f"manifest.json: {message}"):
        datasets.load("records", path=tmp_path)


def test_an_unfinished_data_set_is_not_read(tmp_path):
    write(tmp_path, [example(0)])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest.json: no finished data set. Run python -m tools.build_dataset"):
        datasets.load("records", path=tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path):
    """The limit on a file's size stands for the disk's: the system call fails in the same place."""
    program = f"""if True:
        import resource
        from prismer_jax.shards.reader_test import *
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        rng = np.random.default_rng(0)
        photo = cv2.imencode(".png", rng.integers(0, 256, (200, 200, 3), np.uint8))[1].tobytes()
        examples = [dict(example(i), image=photo) | {{f"labels/{{name}}": b"" for name in EXPERTS}} for i in range(9)]
        try:
            writer.write_shard(examples, {str(tmp_path)!r}, "a.array_record", experts=EXPERTS)
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "a.array_record: cannot be written (write() failed: File too large" in done.stdout
    assert "Free space" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class NoSpace:
    """Fails as array_record does on a disk without space."""

    def __init__(self, path, options):
        pathlib.Path(path).write_bytes(b"half")

    def write(self, record):
        raise RuntimeError("write() failed: No space left on device; writing x; at byte 0")

    def close(self):
        raise RuntimeError("write() failed: No space left on device; writing x; at byte 0")


def test_no_space_left_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", NoSpace)
    with pytest.raises(UserError, match=r"a: cannot be written \(write\(\) failed: No space left on device\). Free"):
        writer.write_shard([example(0)], tmp_path, "a", experts=EXPERTS)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_lease_keeps_a_shard_from_appearing(tmp_path):
    def lost():
        raise KeyError("lost")

    with pytest.raises(KeyError):
        writer.write_shard([example(0)], tmp_path, "a", experts=EXPERTS, check=lost)
    assert list(tmp_path.iterdir()) == []


def test_remote_data_sets_are_read_through_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    made = write("memory://bucket/set", [example(0, 1), example(1)], [example(2)])
    names = {name.rpartition("/")[2] for name in fsspec.filesystem("memory").ls("/bucket/set", detail=False)}
    assert {"manifest.json", "features.json", "dataset_info.json", made.shards[1].file} <= names
    source = datasets.load("records", path="memory://bucket/set", task="all")
    assert not list(tmp_path.rglob("*.array_record*"))  # nothing is fetched before it is wanted
    assert source[2]["id"] == "photo 2"
    copies = list(tmp_path.rglob("*.array_record*"))
    assert [copy.name.rpartition(".")[0] for copy in copies] == [made.shards[1].file]
    copies[0].write_bytes(b"cut off")
    assert pickle.loads(pickle.dumps(source))[2]["id"] == "photo 2"  # fetched again
    fsspec.filesystem("memory").rm(f"/bucket/set/{made.shards[0].file}")
    with pytest.raises(UserError, match="the shard is missing"):
        source[0]


def test_a_remote_data_set_that_was_built_again_is_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    first = write("memory://bucket/again", [example(1)])
    assert datasets.load("records", path="memory://bucket/again")[0]["id"] == "photo 1"
    second = write("memory://bucket/again", [example(2)])
    assert first.shards[0].bytes == second.shards[0].bytes  # only the content tells them apart
    assert datasets.load("records", path="memory://bucket/again")[0]["id"] == "photo 2"
    assert len(list(tmp_path.rglob("*.array_record*"))) == 1


def test_file_urls_are_local_paths(tmp_path):
    write(f"file://{tmp_path}", [example(0)])
    assert datasets.load("records", path=f"file://{tmp_path}")[0]["id"] == "photo 0"


def test_a_protocol_that_nobody_knows_is_one_line():
    with pytest.raises(UserError, match=r"nowhere://x/manifest\.json: cannot be reached"):
        datasets.load("records", path="nowhere://x")


def test_more_shards_are_open_than_a_process_may_have_by_default(tmp_path):
    program = f"""if True:
        import resource
        from prismer_jax.shards.reader_test import *
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 1000))
        source = datasets.load("records", path={str(tmp_path)!r})
        assert [source[i]["id"] for i in range(60)] == [f"photo {{i}}" for i in range(60)]
    """
    bare = [{"id": f"photo {i}", "image": jpeg(i), "captions": [], "questions": []} for i in range(60)]
    write(tmp_path, *([one] for one in bare))
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nobody_is_told_to_delete_shards_that_only_cannot_be_opened(tmp_path):
    program = f"""if True:
        import resource
        from prismer_jax.shards.reader_test import *
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        source = datasets.load("records", path={str(tmp_path)!r})
        with pytest.raises(UserError, match="cannot be opened .*Too many open files.*ulimit -n") as error:
            [source[i] for i in range(60)]
        assert "Delete it" not in str(error.value)
    """
    bare = [{"id": f"photo {i}", "image": jpeg(i), "captions": [], "questions": []} for i in range(60)]
    write(tmp_path, *([one] for one in bare))
    subprocess.run([sys.executable, "-c", program], check=True)


def test_threads_share_a_source(tmp_path):
    write(tmp_path, *([example(i), example(i + 1)] for i in range(0, 20, 2)))
    source = datasets.load("records", path=tmp_path, task="all")
    order = np.random.default_rng(0).integers(0, 20, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert [got["id"] for got in pool.map(source.__getitem__, order)] == [f"photo {i}" for i in order]


def test_names_are_fit_for_tfds():
    assert [metadata.identifier(text) for text in ("CC3M-SGU", "2014 train", "vqa.v2/")] == [
        "cc3m_sgu",
        "data_2014_train",
        "vqa_v2",
    ]


def test_a_manifest_says_what_is_there(tmp_path):
    write(tmp_path, [example(0, 2), example(1)], [example(2)])
    totals = json.loads((tmp_path / "manifest.json").read_text())["totals"]
    assert (totals["records"], totals["captions"], totals["questions"]) == (3, 6, 2)
    assert totals["labels"] == dict.fromkeys(EXPERTS, 3)
    assert len(reader.Shards(str(tmp_path))) == 3
    assert isinstance(records.load(tmp_path), records.Source)
