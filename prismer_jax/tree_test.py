import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prismer_jax import tree
from prismer_jax.errors import UserError

NESTED = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}}


def test_flatten_names_dicts_tuples_and_optimiser_states():
    assert tree.flatten({"x": (1, {"y": 2})}) == {"x/0": 1, "x/1/y": 2}
    state = optax.scale_by_adam().init({"w": jnp.zeros(2)})
    assert set(tree.flatten(state)) == {"count", "mu/w", "nu/w"}


def test_unflatten_inverts_flatten_and_names_keep_the_structure():
    assert tree.unflatten(tree.flatten(NESTED)) == NESTED
    assert tree.names(NESTED)["b"] == {"c": {"kernel": "b/c/kernel"}}


def test_first_match_takes_whole_names_and_the_first_pattern():
    names = list(tree.flatten(NESTED))
    assert tree.first_match([".*/bias", "a/.*"], names, "lr_mults") == {"a/bias": 0, "a/kernel": 1}
    with pytest.raises(UserError, match=r"lr_mults: 'kernel' matches no parameter.*whole name"):
        tree.first_match(["kernel"], names, "lr_mults")
    with pytest.raises(UserError, match=r"freeze: '\(' is not a regular expression"):
        tree.first_match(["("], names, "freeze")


def test_a_pattern_hidden_by_earlier_ones_is_fine():
    assert tree.first_match([".*", "a/bias"], ["a/bias"], "x") == {"a/bias": 0}


def test_fingerprint_is_of_names_places_and_bits_wherever_they_lie():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(8, 3, 5)).astype(np.float32),
        "b": {"c": jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16), "d": np.arange(6, dtype=np.int32)},
        "e": np.float32(3.0),
        "f": np.array([True, False]),
    }
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = {**arrays, "a": jax.device_put(arrays["a"], jax.NamedSharding(mesh, jax.P("data")))}
    assert tree.fingerprint(split) == tree.fingerprint(arrays) == tree.fingerprint(jax.tree.map(jnp.asarray, arrays))
    swapped = arrays["a"].copy()
    swapped[0, 0, :2] = swapped[0, 0, 1::-1]
    nudged = arrays["a"].copy()
    nudged[7, 2, 4] = np.nextafter(nudged[7, 2, 4], 9)
    others = [
        {**arrays, "a": swapped},
        {**arrays, "a": nudged},
        {**arrays, "a": arrays["a"].reshape(8, 5, 3)},
        {**arrays, "a": arrays["a"][::-1].copy()},
        {**arrays, "e": np.float32(-3.0)},
        {**arrays, "f": np.array([False, True])},
        {("g" if name == "e" else name): value for name, value in arrays.items()},
    ]
    assert len({tree.fingerprint(other) for other in [arrays, *others]}) == 1 + len(others)
