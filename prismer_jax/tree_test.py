import jax.numpy as jnp
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
