import pickle

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.weights import safe, wrappers

X = np.ones(3)


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        ("module.conv.weight", "conv.weight"),
        ("_orig_mod.conv.weight", "conv.weight"),
        ("_orig_mod.module.conv.weight", "conv.weight"),
        ("module._orig_mod.module.conv.weight", "conv.weight"),
        ("encoder._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.w", "encoder.layers.0.w"),
        ("encoder.module.weight", "encoder.module.weight"),  # a part that its author called so
        ("my_module.weight", "my_module.weight"),
        ("not_orig_mod.weight", "not_orig_mod.weight"),
        ("modules.0.weight", "modules.0.weight"),
        ("n_averaged", None),
        ("_orig_mod.n_averaged", None),
    ],
)
def test_keys_lose_what_wrappers_put_before_them(saved, own):
    assert wrappers.own_key(saved) == own


def load(folder, tree):
    (folder / "weights").write_bytes(pickle.dumps(tree))
    return safe.load(folder / "weights")


@pytest.mark.parametrize("outer", wrappers.NESTS)
def test_a_nest_in_a_nest_is_entered(tmp_path, outer):
    for inner in wrappers.NESTS:
        assert load(tmp_path, {outer: {inner: {"x": X}, "decay": 0.9}, "epoch": 3}).keys() == {"x"}


def test_of_several_nests_the_one_with_arrays_is_entered(tmp_path):
    assert load(tmp_path, {"model": {"x": X}, "ema": {"decay": 0.9}, "network": {}}).keys() == {"x"}
    with pytest.raises(UserError, match=r"holds both state_dict and state_dict_ema\. .*torch\.load\(FILE\)\['state_di"):
        load(tmp_path, {"state_dict": {"x": X}, "state_dict_ema": {"x": X}})


def test_a_nest_that_contains_itself_is_no_state_dict(tmp_path):
    tree = {}
    tree["model"] = tree
    with pytest.raises(UserError, match="contains itself"):
        load(tmp_path, tree)


def test_what_stands_before_most_keys_is_named():
    expected = {"a.w", "b.w", "c.w"}
    assert wrappers.prefix_of(["net.a.w", "net.b.w", "x"], expected) == "net."
    assert wrappers.prefix_of(["student.net.a.w", "student.net.b.w"], expected) == "student.net."
    assert wrappers.prefix_of(["net.a.w", "x", "y"], expected) == ""
    assert wrappers.prefix_of([], expected) == ""
