import pickle

import numpy as np
import pytest

from prismer_jax import label_files
from prismer_jax.errors import UserError
from prismer_jax.weights import ocr_words


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(table, protocol=2))


def table(*texts):
    rng = np.random.RandomState(len(texts))
    return {i: {"features": rng.standard_normal(64).astype(np.float32), "text": text} for i, text in enumerate(texts)}


def test_official_words_are_read_by_the_label_reader_afterwards(tmp_path):
    made = table("exit", "naïve")
    write(tmp_path / "ocr_detection/a/x.pt", made)
    write(tmp_path / "ocr_detection/b/y.pt", table("stop"))
    assert ocr_words.convert(tmp_path / "ocr_detection") == 2
    assert ocr_words.convert(tmp_path / "ocr_detection") == 0  # what is there stays
    features, texts = label_files.read_words(tmp_path / "ocr_detection/a/x.npz")
    assert texts == ["exit", "naïve"]
    np.testing.assert_array_equal(features[1], made[1]["features"].astype(np.float16))
    assert not features[2:].any()


@pytest.mark.parametrize(
    "made",
    [
        {0: {"features": np.zeros(63, np.float32), "text": "a"}},
        {0: {"features": np.zeros(64, np.float32)}},
        {1: {"features": np.zeros(64, np.float32), "text": "a"}},
        {0: {"features": np.zeros(64, np.float32), "text": 3}},
        [1, 2],
        table(*["w"] * 256),
    ],
)
def test_other_contents_are_named_and_not_written(tmp_path, made):
    write(tmp_path / "x.pt", made)
    with pytest.raises(UserError, match=r"x\.pt: is no table of at most 255 words"):
        ocr_words.convert(tmp_path)
    assert not (tmp_path / "x.npz").exists()


def test_a_folder_without_pt_files_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"has no \.pt files"):
        ocr_words.convert(tmp_path)
