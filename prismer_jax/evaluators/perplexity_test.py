"""Perplexity is that of the right texts, a token of them: of a model that finds all words alike, their number."""

import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.evaluators.loss import LossEvaluator
from prismer_jax.evaluators.perplexity import PerplexityEvaluator

WORDS = 7


class Model:
    """Gives word 0 a score of its own where it sees something, and else all words the same."""

    experts = ()

    def apply(self, *args, method):
        return getattr(self, method)(*args)

    def __call__(self, variables, batch):
        seen = (batch["image"] != 128).any((1, 2, 3)).astype(jnp.float32)
        shape = (*batch["text"].shape, WORDS)
        return jnp.zeros(shape).at[..., 0].add(variables["score"] * seen[:, None])


def example(number):
    """Returns a text of 4 zeros, of which `number` are learnt."""
    learnt = (np.arange(4) >= 4 - number).astype(np.float32)
    text = np.zeros(4, np.int32)
    return {
        "id": str(number),
        "image": np.zeros((2, 2, 3), np.uint8),
        "text": text,
        "mask_input": text == 0,
        "mask_ar": text,
        "segment": text,
        "mask_loss": learnt,
    }


def test_of_a_model_that_finds_all_words_alike_it_is_their_number():
    light = example(3)
    light["mask_loss"] = light["mask_loss"] / 4  # a row's weight in training makes no word of its likelier
    options = dict(model=Model(), tokenizer=None, source=[example(1), light], batch_size=2, quiet=True)
    evaluator = PerplexityEvaluator(**options, pp=lambda example, rng: example)
    found = dict(evaluator.run({"score": np.log(3.0)}))
    # Seen, the right word has 3 parts of 9, unseen 1 of 7, whatever the number of tokens that are learnt.
    assert found["perplexity"] == pytest.approx(3.0, rel=1e-5)
    assert found["perplexity_blank"] == pytest.approx(WORDS, rel=1e-5)
    assert found["loss"] == pytest.approx(np.log(3.0), rel=1e-5)


def test_of_a_loss_beyond_what_a_float_can_hold_the_exponential_of_it_is_infinite():
    options = dict(model=Model(), tokenizer=None, source=[example(1)], batch_size=1, quiet=True)
    found = dict(PerplexityEvaluator(**options, pp=lambda example, rng: example).run({"score": -1000.0}))
    assert found["loss"] > 990
    assert found["perplexity"] == float("inf")


def test_a_loss_a_part_of_a_batch_is_that_of_all_tokens_in_batches_of_any_size():
    """A row that fills up a last batch would count, and its tokens lower the loss of others."""
    sources = [example(1), example(3), example(2)]
    for size in (2, 3):
        options = dict(loss_options=dict(normalize="part"), blank=False, batch_size=size, quiet=True)
        evaluator = LossEvaluator(model=Model(), tokenizer=None, source=sources, pp=lambda e, rng: e, **options)
        assert dict(evaluator.run({"score": 0.0}))["loss"] == pytest.approx(np.log(WORDS), rel=1e-5)


def test_of_label_maps_a_blank_image_has_the_same_maps_to_be_made():
    class Student(Model):
        def costs(self, variables, batch):
            there = batch["labels/depth"].mean((1, 2, 3), dtype=jnp.float32)
            return {"depth": (there + batch["image"].mean((1, 2, 3), dtype=jnp.float32), jnp.ones(1))}

    one = {"id": "1", "image": np.full((2, 2, 3), 8, np.uint8), "labels/depth": np.full((2, 2, 1), 5, np.uint8)}
    options = dict(loss="label_maps", batch_size=1, quiet=True)
    evaluator = LossEvaluator(model=Student(), tokenizer=None, source=[one], pp=lambda e, rng: e, **options)
    assert dict(evaluator.run({})) == {"loss": 8 + 5, "loss_blank": 128 + 5}
