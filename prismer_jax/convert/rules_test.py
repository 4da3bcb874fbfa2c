import numpy as np
import pytest

from prismer_jax.convert.rules import Rule, Table, from_torch, grouped, key_shapes, keys_of, to_torch

TABLE = Table(
    (
        Rule("blocks.{}.qv", ("q", "v"), "dense"),
        Rule("conv", ("conv",), "conv"),
        Rule("count", ("count",), dtype="int64"),
        Rule("copy", ("conv",), "conv", derived=True),
    ),
    {"ids": ("q", lambda shape: np.arange(shape[0]))},
)
NAMES = {
    "q": np.arange(12.0).reshape(2, 3, 2),
    "v": -np.arange(12.0).reshape(2, 3, 2),
    "conv": np.arange(24.0).reshape(1, 2, 3, 4),
    "count": np.asarray(7, np.int32),
}


def test_layers_are_stacked_parts_packed_and_axes_moved():
    state = to_torch(NAMES, TABLE)
    assert {key: array.shape for key, array in state.items()} == key_shapes(TABLE, NAMES)
    assert state["blocks.1.qv"].tolist() == [[6, 8, 10], [7, 9, 11], [-6, -8, -10], [-7, -9, -11]]
    assert state["conv"].shape == (4, 3, 1, 2)
    assert state["conv"][3, 1, 0, 1] == NAMES["conv"][0, 1, 1, 3]
    assert state["count"].dtype == np.int64
    assert state["ids"].tolist() == [0, 1]
    for name, array in from_torch(state, TABLE, NAMES).items():
        assert array.dtype == NAMES[name].dtype
        np.testing.assert_array_equal(array, NAMES[name])


def test_a_parameter_without_a_rule_is_a_bug_not_a_silence():
    with pytest.raises(ValueError, match=r"no conversion rule for \['lost'\]"):
        key_shapes(TABLE, {**NAMES, "lost": np.zeros(1)})


def test_keys_of_parameters_leave_out_what_is_derived():
    assert keys_of(["v"], TABLE, NAMES) == {"blocks.0.qv", "blocks.1.qv"}
    assert keys_of(["conv"], TABLE, NAMES) == {"conv"}


def test_only_whole_numbers_between_dots_are_grouped():
    assert grouped(["a.0.ln_1", "a.11.ln_1", "b.3"]) == "a.*.ln_1 (2), b.3"
