"""Retrieval gives what the reference's dense matrices give, encodes a photo twice at most, and goes on after a stop."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prismer_jax import evaluators
from prismer_jax.batch import prompts
from prismer_jax.decode import matching
from prismer_jax.errors import UserError
from prismer_jax.evaluators import retrieval
from prismer_jax.evaluators.journal import Journal

PHOTOS, WIDTH, QUERIES, WORDS = 9, 4, 3, 50
TABLE = np.random.RandomState(0).standard_normal((256 + WORDS, QUERIES, WIDTH)).astype(np.float32)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Matcher(nn.Module):
    """Its vectors are a table's, by the value of a photo and the sum of a text's ids; it scores pairs by a rule."""

    experts, classes = (), {}

    def image_tokens(self, batch):
        return batch["image"][:, 0, 0, :1].astype(jnp.int32)

    def queried(self, tokens):
        return jnp.asarray(TABLE)[tokens[:, 0]], {"image": tokens}

    def image_embeddings(self, states):
        return unit(states)

    def read_text(self, batch):
        states = jnp.asarray(TABLE)[256 + (batch["text"] * batch["mask_input"]).sum(1) % WORDS]
        return states, unit(states)

    def matched(self, text, real, image=None, keys=None):
        score = (keys["image"][:, None, 0] * (text * real).sum(-1) % 101) / 50 - 1
        scores = jnp.stack([-score, score], axis=-1)[:, :, None] + jnp.zeros((QUERIES, 1))
        return jnp.zeros((*text.shape[:2], QUERIES, WIDTH)), scores


class Perfect(Matcher):
    """The vector of a text is that of the photo whose value is the sum of its ids, and all pairs match alike."""

    def read_text(self, batch):
        states = jnp.asarray(TABLE)[(batch["text"] * batch["mask_input"]).sum(1)]
        return states, unit(states)

    def matched(self, text, real, image=None, keys=None):
        states, scores = super().matched(text, real, image, keys)
        return states, 0 * scores


class Tokenizer:
    bos, pad, eos = 1, 0, 2

    def encode(self, text):
        return [3 + ord(letter) % 40 for letter in text if letter != " "]


def source():
    texts = ["a cat", "two dogs", "red", "the sea", "a bus", "trees", "one man", "snow", "food", "lamps", "x y z"]
    rng = np.random.RandomState(1)
    return [
        {"id": str(i), "value": 20 * i + 3, "captions": [texts[j] for j in rng.choice(11, 1 + i % 3, replace=False)]}
        for i in range(PHOTOS)
    ]


def pp(example, rng):
    return dict(example, image=np.full((2, 2, 3), example["value"], np.uint8))


def made(**options):
    options = dict(model=Matcher(), tokenizer=Tokenizer(), source=source(), pp=pp, batch_size=4, quiet=True) | options
    return evaluators.build("retrieval", max_tokens=8, **options)


def by_dense_matrices(k):
    """The reference's way: -100 wherever a pair was not ranked again (models/blip2_models/blip2.py)."""
    texts = [text for example in source() for text in example["captions"]]
    owners = np.array([i for i, example in enumerate(source()) for _ in example["captions"]])
    ids, real = matching.tokens(Tokenizer(), texts, 8)
    sums = (ids * real).sum(1)
    photos = np.array([example["value"] for example in source()])
    images, words = (np.array(unit(TABLE[rows])) for rows in (photos, 256 + sums % WORDS))
    likeness = np.einsum("nqe,me->nqm", images, words[:, 0]).max(1)
    scores = (photos[:, None] * sums % 101) / 50 - 1
    found = {}
    for way, matrix, pairs in (("i2t", likeness, scores), ("t2i", likeness.T, scores.T)):
        dense = np.full(matrix.shape, -100.0)
        for row, line in enumerate(matrix):
            best = np.argsort(-line)[:k]
            dense[row, best] = line[best] + (pairs[row, best] if k < 100 else 0)
        right = owners[None] == np.arange(PHOTOS)[:, None]
        right = right if way == "i2t" else right.T
        order = np.argsort(-dense, axis=1, kind="stable")
        ranks = np.take_along_axis(right, order, 1).argmax(1)
        found |= {f"{way}_r{at}": 100 * np.mean(ranks < at) for at in (1, 5, 10)}
    return found


@pytest.mark.parametrize(("k_test", "dense"), [(10, 10), (0, 100)])
def test_recalls_are_those_of_the_dense_matrices(k_test, dense):
    evaluator = made(k_test=k_test, texts_at_once=3)
    found = dict(evaluator.run({}))
    expected = by_dense_matrices(dense)
    assert set(evaluator.score_names) == set(found)  # by which a training may choose its best checkpoint
    assert found == pytest.approx({**expected, "r_mean": np.mean(list(expected.values()))})
    assert len(set(expected.values())) > 2
    assert [p["image_id"] for p in evaluator.predictions] == list(range(PHOTOS))
    assert np.mean([record["scores"]["i2t_r1"] for record in evaluator.records]) == pytest.approx(found["i2t_r1"])


@pytest.mark.parametrize("k_test", [10, 0])
@pytest.mark.parametrize("bare", [0, 2, 3])
def test_a_photo_without_captions_is_found_by_none_and_counts_as_no_miss(k_test, bare, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: [20 * int(text)])  # with its ends a photo's value
    photos = [{"id": str(i), "value": 20 * i + 3, "captions": [str(i)] if i != bare else []} for i in range(4)]
    evaluator = made(model=Perfect(), k_test=k_test, source=photos, max_unscored=0.25)
    assert dict(evaluator.run({})) == {**dict.fromkeys((*evaluator.score_names, "r_mean"), 100), "unscored": 1}
    assert [record.get("scores", {}).get("i2t_r1") for record in evaluator.records] == [
        None if i == bare else 100 for i in range(4)
    ]


def test_texts_that_several_processes_embed_count_once(monkeypatch):
    """As with an axis `tensor` across processes, each of which then holds all rows."""
    expected = dict(made(k_test=4).run({}))
    monkeypatch.setattr(retrieval, "gather", lambda entries: 2 * entries)
    assert dict(made(k_test=4).run({})) == expected


def test_a_run_that_was_stopped_matches_only_what_is_left(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    expected, calls = dict(made(k_test=4).run({})), []

    def counting(*args, limit=2, match=matching.match):
        if len(calls) == limit:
            raise Stop
        calls.append(1)
        return match(*args)

    monkeypatch.setattr(matching, "match", counting)
    with Journal(tmp_path, "retrieval", {}) as journal, pytest.raises(Stop):
        list(made(k_test=4).run({}, journal))
    calls.clear()
    with Journal(tmp_path, "retrieval", {}) as journal:
        assert dict(made(k_test=4).run({}, journal)) == expected
    assert len(calls) == 1  # of three batches


def test_what_cannot_be_compared_is_explained():
    class Parrot(nn.Module):
        pass

    with pytest.raises(UserError, match="A Parrot does not compare photos with texts"):
        made(model=Parrot())
    with pytest.raises(UserError, match=r"Text 2 of 2 is empty \('\.\.\.'\)"):
        matching.tokens(Tokenizer(), ["a cat", "..."], 8)
    with pytest.raises(UserError, match="No sample has a caption"):
        list(made(source=[{"id": "1", "value": 3, "captions": []}]).run({}))


def test_long_texts_are_cut_and_counted_once(caplog):
    ids, real = matching.tokens(Tokenizer(), ["abcdefghij", "ab", "b" * 9], 6)
    assert (ids[:, 0] == 1).all()
    assert ids[0, -1] == 2
    np.testing.assert_array_equal(real.sum(1), [6, 4, 6])
    assert caplog.messages == ["2 of 3 texts are longer than 6 tokens and were cut."]
    np.testing.assert_array_equal(prompts(ids, real)["text"], ids)
