import re

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.weights.rules import Rule, Table, from_torch, grouped, key_shapes, keys_of, to_torch

TABLE = Table(
    (
        Rule("blocks.{}.qv", ("q", "v"), "dense"),
        Rule("conv", ("conv",), "conv"),
        Rule("count", ("count",), dtype="int64", default=0),
        Rule("copy", ("conv",), "conv", derived=True),
    ),
    {"ids": ("q", lambda shape: np.arange(shape[0]))},
    spellings=((r"^convolution", "conv"),),
    ignored=(r"pooler\..*",),
)
NAMES = {
    "q": np.arange(12.0).reshape(2, 3, 2),
    "v": -np.arange(12.0).reshape(2, 3, 2),
    "conv": np.arange(24.0).reshape(1, 2, 3, 4),
    "count": np.asarray(7, np.int32),
}


def read(state, **options):
    return {name: make() for name, make in from_torch(state, TABLE, NAMES, "the file", **options).items()}


def ones(names):
    return {name: np.ones(NAMES[name].shape) for name in names}


def test_layers_are_stacked_parts_packed_and_axes_moved():
    state = to_torch(NAMES, TABLE)
    assert {key: array.shape for key, array in state.items()} == key_shapes(TABLE, NAMES)
    assert state["blocks.1.qv"].tolist() == [[6, 8, 10], [7, 9, 11], [-6, -8, -10], [-7, -9, -11]]
    assert state["conv"].shape == (4, 3, 1, 2)
    assert state["conv"][3, 1, 0, 1] == NAMES["conv"][0, 1, 1, 3]
    assert state["count"].dtype == np.int64
    assert state["ids"].tolist() == [0, 1]
    assert state["copy"].__array_interface__ == state["conv"].__array_interface__  # tied: one memory
    for name, array in read(state).items():
        assert array.dtype == NAMES[name].dtype
        np.testing.assert_array_equal(array, NAMES[name])


def test_a_stack_may_begin_after_the_first_layer():
    table = Table((Rule("blocks.0.w", ("first",)), Rule("blocks.{}.w", ("rest",), first=1)))
    names = {"first": np.zeros(3), "rest": np.arange(4.0).reshape(2, 2)}
    state = to_torch(names, table)
    assert {key: array.tolist() for key, array in state.items()} == {
        "blocks.0.w": [0, 0, 0],
        "blocks.1.w": [0, 1],
        "blocks.2.w": [2, 3],
    }
    np.testing.assert_array_equal(from_torch(state, table, names)["rest"](), names["rest"])


def test_large_matrices_are_transposed_whole():
    table, names = Table((Rule("w", ("w",), "dense"),)), {"w": np.random.RandomState(0).rand(37, 50)}
    np.testing.assert_array_equal(from_torch({"w": names["w"].T.copy()}, table, names)["w"](), names["w"])


def test_a_parameter_without_a_rule_is_no_silence():
    with pytest.raises(UserError, match=r"The original has no lost\. Convert the model without what that lacks"):
        key_shapes(TABLE, {**NAMES, "lost": np.zeros(1)})


def test_keys_of_parameters_leave_out_what_is_derived():
    assert keys_of(["v"], TABLE, NAMES) == {"blocks.0.qv", "blocks.1.qv"}
    assert keys_of(["conv"], TABLE, NAMES) == {"conv"}


def test_only_whole_numbers_between_dots_are_grouped():
    assert grouped(["a.0.ln_1", "a.11.ln_1", "b.3"]) == "a.*.ln_1 (2), b.3"


def test_a_dozen_keys_of_a_kind_are_named():
    assert grouped(["a.0", *"bcdefghijkl", "a.1"]) == "a.* (2), b, c, d, e, f, g, h, i, j, k, l"
    assert grouped([*"abcdefghijklm", "n.0", "n.1"]) == "a, b, c, d, e, f, g, h, i, j, k, l and 3 more"
    names = {f"w{chr(97 + i)}": np.zeros(i + 1) for i in range(15)}
    table = Table(tuple(Rule(name, (name,)) for name in names))
    with pytest.raises(UserError) as raised:
        from_torch({name: np.zeros(99) for name in names}, table, names)
    assert str(raised.value).count(" instead of ") == 12
    assert "; 3 more differ in other ways. Check" in str(raised.value)


def test_a_prefix_of_all_keys_is_named():
    state = {f"student.{key}": array for key, array in to_torch(NAMES, TABLE).items()}
    with pytest.raises(
        UserError, match=r"missing: .* unexpected: .*\. Most have 'student\.' before the model's own keys"
    ):
        read(state)


def test_old_files_are_read():
    """Without the count that old versions did not save, under other spellings, with parts that nobody needs."""
    state = to_torch(NAMES, TABLE)
    del state["count"], state["ids"]
    old = {f"{key.replace('conv', 'convolution')}": array for key, array in state.items()}
    found = read({**old, "pooler.weight": np.zeros(3)})
    assert found["count"] == 0
    np.testing.assert_array_equal(found["conv"], NAMES["conv"])


def test_wrapped_files_are_read():
    state = {key: array for key, array in to_torch(NAMES, TABLE).items() if key != "conv"}
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module."):
        whole = {f"{prefix}{key}": array for key, array in state.items()}
        part = {f"{prefix}{key}" if "blocks" in key else key: array for key, array in state.items()}
        for wrapped in (whole, part, {**whole, "n_averaged": np.asarray(3)}):
            wrapped[f"{prefix}convolution"] = NAMES["conv"].transpose(3, 2, 0, 1)
            np.testing.assert_array_equal(read(wrapped)["q"], NAMES["q"])
            np.testing.assert_array_equal(read(wrapped)["conv"], NAMES["conv"])
    with pytest.raises(UserError, match=r"has count twice: as count and as module\.count"):
        read({**state, "module.count": state["count"]})


def test_either_of_two_tied_keys_may_be_absent():
    state = to_torch(NAMES, TABLE)
    for absent in ("conv", "copy"):
        np.testing.assert_array_equal(
            read({key: array for key, array in state.items() if key != absent})["conv"], NAMES["conv"]
        )
    for key in ("conv", "copy"):
        del state[key]
    with pytest.raises(UserError, match="1 missing: conv"):
        read(state)
    table = Table((Rule("a.{}.w", ("w",)), Rule("b.{}.w", ("w",), derived=True)))
    names = {"w": np.arange(4.0).reshape(2, 2)}
    state = {key: array for key, array in to_torch(names, table).items() if key != "a.1.w" and key != "b.0.w"}
    np.testing.assert_array_equal(from_torch(state, table, names)["w"](), names["w"])


def test_two_spellings_of_one_key_are_refused():
    state = to_torch(NAMES, TABLE)
    with pytest.raises(UserError, match=r"the file has conv twice: as conv and as convolution\. "):
        read({**state, "convolution": state["conv"] + 1})


def test_differences_are_fatal_until_they_are_allowed():
    state = to_torch(NAMES, TABLE)
    del state["blocks.1.qv"]
    wrong = {**state, "conv": np.zeros((2, 2)), "count": np.asarray(1.0), "more": np.zeros(1)}
    reasons = {
        r"blocks\.1\.qv": "1 missing: blocks.1.qv",
        r"conv": "1 of shape [2, 2] instead of [4, 3, 1, 2]: conv",
        r"count": "1 of type float64 instead of int64: count",
        r"more": "1 unexpected: more",
    }
    with pytest.raises(UserError) as raised:
        read(wrong)
    for reason in reasons.values():
        assert reason in str(raised.value)
    for left, reason in reasons.items():
        with pytest.raises(UserError, match=re.escape(f"Of its keys {reason}. ")):
            read(wrong, allow=[pattern for pattern in reasons if pattern != left], fresh=ones)


def test_what_is_allowed_to_be_missing_keeps_its_initial_values():
    state = to_torch(NAMES, TABLE)
    del state["blocks.1.qv"]
    asked = []

    def fresh(names):
        asked.append(list(names))
        return ones(names)

    found = read({**state, "conv": np.zeros(2), "more": np.zeros(1)}, allow=[r"blocks.*|more", "conv"], fresh=fresh)
    assert asked == [["conv", "q", "v"]]  # once, and only what is needed
    np.testing.assert_array_equal(found["q"], [NAMES["q"][0], np.ones((3, 2))])
    np.testing.assert_array_equal(found["conv"], np.ones((1, 2, 3, 4)))


def test_an_allowance_for_nothing_is_a_mistake():
    with pytest.raises(UserError, match=r"allow: 'block' matches no parameter"):
        read(to_torch(NAMES, TABLE), allow=["block"], fresh=ones)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_of_half_the_size_are_read_exactly(dtype):
    import ml_dtypes  # noqa: F401  registers bfloat16

    state = {k: v.astype(dtype) if v.dtype == np.float64 else v for k, v in to_torch(NAMES, TABLE).items()}
    np.testing.assert_array_equal(read(state)["conv"], NAMES["conv"])


def test_a_mapped_file_stays_readable_while_its_pages_are_let_go(tmp_path):
    data = np.random.RandomState(0).standard_normal((3, 40, 30)).astype(np.float32)
    data.tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float32, "r", shape=data.shape)
    table = Table(tuple(Rule(f"{i}.{{}}", (f"w{i}",), "dense") for i in range(3)))
    shapes = {f"w{i}": np.zeros((1, 30, 40), np.float32) for i in range(3)}
    found = from_torch({f"{i}.0": mapped[i] for i in range(3)}, table, shapes)
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(found[f"w{i}"]()[0], data[i].T)


def test_constants_of_stacked_layers_may_be_there_or_not():
    table = Table((Rule("blocks.{}.v", ("v",)),), {"blocks.{}.index": ("v", lambda shape: np.arange(shape[0]))})
    state = to_torch({"v": NAMES["v"]}, table)
    assert {key: array.shape for key, array in state.items()} == key_shapes(table, {"v": NAMES["v"]})
    assert state["blocks.0.index"].tolist() == state["blocks.1.index"].tolist() == [0, 1, 2]
    for lacking in ([], ["blocks.1.index"], ["blocks.0.index", "blocks.1.index"]):
        part = {key: array for key, array in state.items() if key not in lacking}
        np.testing.assert_array_equal(from_torch(part, table, {"v": NAMES["v"]})["v"](), NAMES["v"])
    with pytest.raises(UserError, match=r"unexpected: blocks\.2\.index"):
        from_torch({**state, "blocks.2.index": state["blocks.1.index"]}, table, {"v": NAMES["v"]})
