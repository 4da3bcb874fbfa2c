import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.experts.ocr import hourglass
from prismer_jax.weights import rules

TINY = hourglass.CharNet(stacks=1, channels=(4, 8))


@pytest.fixture(scope="module")
def variables():
    """By NumPy: to compile the initialisation takes longer than all else here."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes["params"])
    return {
        "params": params,
        "batch_stats": jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes["batch_stats"]),
    }


def test_the_official_keys_are_all_accounted_for():
    shapes = tree.flatten(jax.eval_shape(hourglass.CharNet().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    keys = rules.key_shapes(hourglass.TABLE, shapes)
    assert len(keys) == 594
    assert keys["backbone.hourglass_blocks.1.low_2.low_2.low_2.0.conv_1.0.weight"] == (512, 512, 3, 3)
    assert keys["char_recognizer.classifier.weight"] == (68, 128, 1, 1)
    assert sum(int(np.prod(leaf.shape)) for name, leaf in shapes.items() if name.startswith("params/")) == 89_151_057


def test_maps_have_a_quarter_of_the_photos_size(variables):
    maps = jax.eval_shape(TINY.apply, variables, jnp.zeros((2, 64, 96, 3)))
    channels = {"score": 2, "sides": 4}
    expected = {f"{kind}_{name}": n for kind in ("word", "char") for name, n in channels.items()}
    assert {name: leaf.shape for name, leaf in maps.items()} == {
        name: (2, 16, 24, n) for name, n in {**expected, "word_angle": 1, "char_class": 68}.items()
    }


def test_bfloat16_computes_nearly_the_same(variables):
    x = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    exact, rough = (jax.jit(TINY.clone(dtype=dtype).apply)(variables, x) for dtype in ("float32", "bfloat16"))
    for name, array in rough.items():
        assert array.dtype == jnp.float32
        difference = np.linalg.norm(array - exact[name]) / np.linalg.norm(exact[name])
        assert 1e-5 < difference < 0.05, name
