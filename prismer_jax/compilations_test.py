"""Nothing recompiles from batch to batch: each program of training, of captioning and of ranking is made once."""

import collections
import contextlib
import logging
import re

import jax
import numpy as np
import pytest

from prismer_jax import config, decode, input, models, sharding
from prismer_jax.batch import prompts
from prismer_jax.decode.ranking import rank_answers
from prismer_jax.models.prismer.model import Prismer
from prismer_jax.training.step import PRNG, make_step

PAD, END, PHOTOS, BATCH = 1, 2, 7, 4  # seven photos in batches of four: the last one is filled up
SIZES = dict(width=32, layers=1, heads=2, mlp_dim=32, vocab_size=40, max_positions=40)
TINY = dict(name="prismer", variant="tiny", experts="none", image_size=32, width=32, heads=2, layers=1, decoder=SIZES)


@contextlib.contextmanager
def compilations():
    """Yields how often XLA compiled each program, by name, within the block; nothing is taken from a cache."""
    counts, logger = collections.Counter(), logging.getLogger("jax._src.dispatch")
    handler = logging.Handler()

    def emit(record):
        if said := re.match(r"Finished XLA compilation of (\S+) in", record.getMessage()):
            counts[said[1]] += 1

    handler.emit = emit
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield counts
    finally:
        logger.removeHandler(handler)


class Source:
    """Photos with the keys of a batch, whose texts have another number of tokens each."""

    def __len__(self):
        return PHOTOS

    def __getitem__(self, index):
        rng, length = np.random.default_rng(index), 6
        text = rng.integers(3, 40, length).astype(np.int32)
        real = np.arange(length) < 2 + index % 5
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        text = np.where(real, text, PAD)
        return {"id": str(index), "image": image, "mask_loss": real.astype(np.float32), **prompts(text, real)}


def batches(place):
    def same(example, rng):
        return example

    loaded = input.eval_batches(Source(), same, batch_size=BATCH, rows=sharding.rows_of(place, BATCH))
    return [jax.device_put({k: v for k, v in b.items() if k not in ("meta", "id")}, place) for b in loaded]


@pytest.fixture
def place():
    return sharding.batch_sharding(sharding.make_mesh(dict(data=2), devices=jax.devices()[:2]))


def model_and_variables():
    model = models.build(TINY["name"], **{k: v for k, v in TINY.items() if k != "name"})
    return model, jax.jit(model.init_variables)(jax.random.key(0, impl=PRNG))


def test_captions_of_all_batches_come_of_one_program(place):
    (model, variables), counted = model_and_variables(), batches(place)
    variables = jax.device_put(variables, sharding.replicated(place.mesh))
    with compilations() as counts:
        for batch in counted:
            jax.block_until_ready(
                decode.generate(model, variables, batch, eos=END, pad=PAD, method="beam", num_beams=2, max_new=4)
            )
    assert len(counted) == 2
    assert {name: count for name, count in counts.items() if "_compiled" in name} == {"jit(_compiled)": 1}


def test_ranking_of_all_batches_comes_of_one_program_however_long_the_candidates_are(place):
    (model, variables), counted = model_and_variables(), batches(place)
    variables = jax.device_put(variables, sharding.replicated(place.mesh))
    rng = np.random.default_rng(0)
    answers = rng.integers(3, 40, (30, 6)).astype(np.int32)
    lengths = np.repeat([1, 6], 15)
    mask = np.arange(6) < lengths[:, None]
    with compilations() as counts:
        for batch in counted:
            for kind in (slice(15), slice(15, 30), slice(8, 23)):  # short ones, long ones, both
                jax.block_until_ready(rank_answers(model, variables, batch, answers[kind], mask[kind], k=8))
    assert {name: count for name, count in counts.items() if "_compiled" in name} == {"jit(_compiled)": 1}


def test_a_training_step_is_compiled_once_though_it_donates_its_state(place, monkeypatch):
    """And the model is traced once for its first values: they are made in a thread, while the step is traced.

    Two threads must not both trace a model: findings/flax_threads_define_modules.sh.
    """
    traced, init_variables = [], Prismer.init_variables
    monkeypatch.setattr(Prismer, "init_variables", lambda *given: traced.append(1) or init_variables(*given))
    cfg = config.Section(
        dict(
            seed=0,
            batch_size=BATCH,
            model=TINY,
            loss=dict(name="cross_entropy"),
            optim=dict(name="adamw", lr=1e-3),
            freeze="none",
        )
    )
    counted = batches(place)
    with jax.set_mesh(place.mesh), compilations() as counts:
        made = make_step(cfg, None, place.mesh, dict(batch_size=BATCH, num_examples=PHOTOS, total_steps=4))
        state = made.init(0)
        for batch in counted * 2:
            batch = {key: value for key, value in batch.items() if key != "_mask"}
            state, measured = made.update(state, batch)
        jax.block_until_ready(measured)
    assert {name: count for name, count in counts.items() if re.search("update|init", name)} == {
        "jit(init)": 1,
        "jit(update)": 1,
    }
    assert traced == [1]
