"""The experts that say something of every pixel, depth, edge and normal, against the reference's recorded cases."""

import re

import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.experts import EXPERTS
from prismer_jax.weights import rules
from tools import parity

# Of each, a key in the middle of its checkpoint.
KEYS = {
    "depth": "scratch.output_conv.4.bias",
    "edge": "up_block_5.features.11.weight",
    "normal": "encoder.original_model.blocks.6.2.conv_dw.weight",
}


@pytest.fixture(scope="module", params=KEYS)
def name(request):
    return request.param


@pytest.fixture
def golden(shared, name):
    return parity.Case(shared / "golden" / f"expert_{name}_small")


def test_every_official_key_is_read_or_known_to_be_of_no_use(golden, name):
    expert, tensors = EXPERTS[name](), golden.manifest["tensors"]
    read = rules.key_shapes(expert.table, expert.shapes)
    ignored = {key for key in tensors if any(re.fullmatch(pattern, key) for pattern in expert.table.ignored)}
    assert ignored == set(golden.manifest["unused_keys"])
    assert {key: list(shape) for key, shape in read.items()} == {
        key: entry["shape"] for key, entry in tensors.items() if key not in ignored
    }
    state = {key: np.broadcast_to(np.zeros((), entry["dtype"]), entry["shape"]) for key, entry in tensors.items()}
    assert tree.flatten(expert.from_official(state)).keys() == expert.shapes.keys()
    del state[KEYS[name]]
    with pytest.raises(UserError, match=f"1 missing: {re.escape(KEYS[name])}"):
        expert.from_official(state)


def test_agrees_with_the_reference(golden):
    error, reason = parity.run_case(golden)
    assert not reason
    assert error < 0.01


@pytest.mark.slow
def test_the_whole_way_from_a_photo_agrees_with_the_reference(shared, name):
    assert parity.run_case(parity.Case(shared / "golden" / f"expert_{name}"))[1] == ""


@pytest.mark.slow
def test_bfloat16_labels_differ_by_less_than_two_levels(shared, name):
    golden = parity.Case(shared / "golden" / f"expert_{name}")
    variables = EXPERTS[name]().from_official(golden.state())
    experts = [EXPERTS[name](dtype=dtype) for dtype in ("float32", "bfloat16")]
    made = [expert.predict([golden["image"]], variables)[0].map.astype(int) for expert in experts]
    assert 0 < np.abs(made[0] - made[1]).mean() < 2  # measured on three photos each: 0.3 to 0.8
