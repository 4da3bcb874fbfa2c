"""Vectors of texts are those of sentence-transformers; a folder's captions become a submission."""

import csv
import json
import os

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.sentences import SentenceEmbedder, submission
from prismer_jax.sentences.testing import write_model

TEXTS = ["a cat on the sofa", "Cafés, the red DOG", "", "cats dogs sofas a a a a a a a", "unheard"]
# The first four numbers of each, of sentence-transformers 6.2.0 with transformers 5.23.0 and torch 2.13.0.
EXPECTED = [
    [0.0935635, 0.5145507, 0.3116686, -0.6723584],
    [0.0964942, 0.5817504, 0.1241511, -0.7079093],
    [0.0057980, 0.1551433, 0.3810318, -0.8575554],
    [0.0329487, 0.2428972, 0.5739738, -0.6320540],
    [-0.0017800, 0.5693412, 0.2130816, -0.7174198],
]
MINILM = "PRISMER_MINILM"  # of the environment: a folder of all-MiniLM-L6-v2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("sentences") / "tiny")


@pytest.fixture(scope="module")
def embedder(folder):
    return SentenceEmbedder(folder)


def test_vectors_are_those_of_sentence_transformers(embedder):
    """Of cut and empty texts and of unknown words, too; whatever is read together with them."""
    vectors = embedder.embed(TEXTS, batch_size=3)
    assert (vectors.shape, vectors.dtype, embedder.longest) == ((5, 8), np.float32, 10)
    np.testing.assert_allclose(vectors[:, :4], EXPECTED, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_the_published_model_has_the_known_cosines():
    if MINILM not in os.environ:
        pytest.skip(f"${MINILM} names no folder of all-MiniLM-L6-v2")
    texts = "two cats sleeping on a pink sofa", "a pair of kittens nap on a couch", "the stock market fell on Tuesday"
    cats, kittens, stocks = SentenceEmbedder(os.environ[MINILM]).embed(texts)
    assert (cats @ kittens, cats @ stocks) == pytest.approx((0.7345, 0.0277), abs=5e-5)


def test_a_submission_has_a_line_for_each_number(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "AT_ONCE", 2)  # captions are embedded piece by piece
    results = [{"image": f"x/{i}.jpg", "captions": [text, "unseen"]} for i, text in enumerate(TEXTS)]
    submission.check(result["image"] for result in results)
    submission.write(tmp_path / "submission.csv", results, embedder)
    header, *lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert header == "imgId_eId,val"
    assert [line.partition(",")[0] for line in lines] == [f"{i}_{n}" for i in range(5) for n in range(8)]
    numbers = np.array([line.partition(",")[2] for line in lines], np.float32).reshape(5, 8)
    np.testing.assert_array_equal(numbers, np.concatenate([embedder.embed(TEXTS[i : i + 2]) for i in (0, 2, 4)]))


def test_a_comma_in_a_photos_name_is_no_column(embedder, tmp_path):
    submission.write(tmp_path / "s.csv", [{"image": 'x/a, "b".jpg', "captions": ["a cat"]}], embedder)
    with open(tmp_path / "s.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == [f'a, "b"_{number}' for number in range(8)]


def test_bad_models_and_photos_of_one_name_are_explained(folder, tmp_path):
    with pytest.raises(UserError, match=r"python -m tools\.download sentences all-MiniLM-L6-v2"):
        SentenceEmbedder("all-MiniLM-L6-v2")
    with pytest.raises(UserError, match=r"config\.json: there is none"):
        SentenceEmbedder(tmp_path)
    other = write_model(tmp_path / "other")
    (other / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="pools by pooling_mode_cls_token"):
        SentenceEmbedder(other)
    (other / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    with pytest.raises(UserError, match="has model_type 'mpnet'"):
        SentenceEmbedder(other)
    (other / "config.json").write_text(json.dumps({"model": {"name": "prismer"}}))
    with pytest.raises(UserError, match="has model_type None"):
        SentenceEmbedder(other)
    for text, message in (("[]", "is no file of a model"), ('{"model_type": "bert"}', "has no hidden_size")):
        (other / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"config\.json: {message}.* Fetch it again"):
            SentenceEmbedder(other)
    with pytest.raises(UserError, match="1 names of photos are there more than once, as a"):
        submission.check(["x/a.jpg", "b.jpg", "a.png"])
