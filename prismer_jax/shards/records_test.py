import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from prismer_jax.errors import UserError
from prismer_jax.shards import records, schema


def png(value: int, channels: int = 1) -> bytes:
    return cv2.imencode(".png", np.full((6, 5, channels), value, np.uint8))[1].tobytes()


def rows(experts: tuple[str, ...]) -> list[dict]:
    """Three photos: with everything, with nothing but a caption, with some labels and weighted answers."""
    photo = cv2.imencode(".jpg", np.full((6, 5, 3), 90, np.uint8))[1].tobytes()
    full = schema.encode(
        id="first",
        image=photo,
        labels={name: png(i, 3 if name == "normal" else 1) for i, name in enumerate(experts)},
        experts=experts,
        classes=[7, 3],
        word_features=np.arange(128).reshape(2, 64) / 8,
        words=["stop", "naïve 🙂"],
        captions=["A red box.", "Ein Würfel."],
        questions=[
            {"question": "What?", "answers": ["box"] * 10, "question_id": 5, "question_type": "relation"},
            {
                "question": "How many?",
                "answers": ["2", "3"],
                "answer_weights": [0.6, 0.4],
                "answer_type": "number",
                "question_id": "06",
            },
        ],
        weight=0.5,
    )
    bare = schema.encode(id="second", image=photo, labels={}, experts=experts, captions=["x"])
    some = schema.encode(id="third", image=photo, labels={"depth": png(9)}, experts=experts)
    return [full, bare, some]


class Photos(tfds.core.GeneratorBasedBuilder):
    name = "photos_of_the_test"
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=schema.features(), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(rows(tuple(records.EXPERTS)))


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    builder = Photos(data_dir=tmp_path_factory.mktemp("data"), file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_examples_come_back_as_they_were(builder):
    source = records.Source(builder.data_path, "all")
    full, bare, some = (source[i] for i in range(len(source)))
    assert (full["id"], full["weight"], full["captions"]) == ("first", 0.5, ["A red box.", "Ein Würfel."])
    for i, name in enumerate(records.EXPERTS):
        assert full[f"labels/{name}"] == png(i, 3 if name == "normal" else 1)
    assert full["labels/obj_detection_classes"].dtype == np.int32
    assert full["labels/obj_detection_classes"].tolist() == [7, 3] + [-1] * 254
    features = full["labels/ocr_detection_features"]
    assert (features.shape, features.dtype) == ((256, 64), np.float16)
    np.testing.assert_array_equal(features[:2], np.arange(128).reshape(2, 64) / 8)
    assert not features[2:].any()
    assert full["questions"][0]["answers"] == ["box"] * 10
    assert full["questions"][1]["question"] == "How many?"
    assert full["questions"][1]["answers"] == ["2", "3"]
    np.testing.assert_allclose(full["questions"][1]["answer_weights"], [0.6, 0.4], rtol=1e-6)
    assert [q["question_id"] for q in full["questions"]] == [5, "06"]
    assert [q.get("answer_type") for q in full["questions"]] == [None, "number"]
    assert sorted(bare) == ["captions", "id", "image", "questions", "weight"]  # missing labels are absent
    assert bare["questions"] == []
    assert some["labels/depth"] == png(9)
    assert "labels/obj_detection_classes" not in some


def test_ids_of_questions_that_a_record_cannot_hold_as_numbers_are_texts():
    ids = [0, 2**63 - 1, -1, 2**63, 2**64 - 1]
    asked = [{"question": "?", "answers": [], "question_id": id} for id in ids]
    record = schema.serializer(())(schema.encode(id="x", image=png(0, 3), labels={}, experts=(), questions=asked))
    questions = records.decode(record, "all")["questions"]
    assert [q.get("question_id") for q in questions] == [0, 2**63 - 1, "-1", str(2**63), str(2**64 - 1)]


def test_tfds_reads_the_same_fields(builder):
    skip = tfds.decode.SkipDecoding()
    decoders = {"image": skip, "labels": dict.fromkeys(records.EXPERTS, skip)}
    theirs = builder.as_data_source(split="train", decoders=decoders)[0]
    ours = records.Source(builder.data_path, "all")[0]
    assert theirs["image"] == ours["image"]
    assert theirs["labels"]["depth"] == ours["labels/depth"]
    assert [text.decode() for text in theirs["captions"]] == ours["captions"]
    assert [text.decode() for text in theirs["labels"]["ocr_detection_words"]] == ["stop", "naïve 🙂"]
    np.testing.assert_array_equal(theirs["labels"]["ocr_detection_features"], ours["labels/ocr_detection_features"][:2])


def test_a_source_is_small_to_pickle_and_opens_lazily(builder):
    source = records.Source(builder.data_path)
    source[0]  # opens the shards
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert pickle.loads(data)[2]["id"] == "third"
    with pytest.raises(IndexError):
        source[3]


def test_a_folder_without_shards_is_reported(tmp_path):
    with pytest.raises(UserError, match="no ArrayRecord shards"):
        records.Source(tmp_path)


def test_neither_writing_nor_reading_imports_tensorflow(tmp_path):
    program = """if True:
        import sys
        from prismer_jax import datasets
        source = datasets.load("scenes", size=32, count=2, data_dir=sys.argv[1])
        assert len(source[1]["captions"]) == 5
        assert "tensorflow_datasets" in sys.modules
        assert not {"tensorflow", "jax", "torch"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)


def test_a_loader_process_imports_what_reads_records_before_its_threads_do(builder):
    """Two threads that import tensorflow_datasets at once wait for each other forever on Python 3.11."""
    source = records.Source(builder.data_path, "all")
    script = (
        "import pickle, sys; source = pickle.load(sys.stdin.buffer); "
        "assert any('tf_example' in name for name in sys.modules); print(source[0]['id'])"
    )
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(source), capture_output=True, check=True)
    assert done.stdout.decode().strip() == source[0]["id"]
