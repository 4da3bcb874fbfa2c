import re

import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.convert import rules
from prismer_jax.errors import UserError
from prismer_jax.experts.edge import Edge, to_grey
from tools import parity


@pytest.fixture(scope="module")
def golden(shared):
    return parity.Case(shared / "golden" / "expert_edge_small")


def test_every_official_key_is_read_or_known_to_be_of_no_use(golden):
    expert, tensors = Edge(), golden.manifest["tensors"]
    read = rules.key_shapes(expert.table, expert.shapes)
    ignored = {key for key in tensors if any(re.fullmatch(pattern, key) for pattern in expert.table.ignored)}
    assert ignored == set(golden.manifest["unused_keys"])
    assert {key: list(shape) for key, shape in read.items()} == {
        key: entry["shape"] for key, entry in tensors.items() if key not in ignored
    }
    state = {key: np.broadcast_to(np.float32(0), entry["shape"]) for key, entry in tensors.items()}
    del state["up_block_5.features.11.weight"]
    with pytest.raises(UserError, match=r"1 missing: up_block_5\.features\.11\.weight"):
        expert.from_official(state)


def test_agrees_with_the_reference(golden):
    error, reason = parity.run_case(golden)
    assert not reason
    assert error < 0.01


@pytest.mark.slow
def test_the_whole_way_from_a_photo_agrees_with_the_reference(shared):
    assert parity.run_case(parity.Case(shared / "golden" / "expert_edge"))[1] == ""


@pytest.mark.slow
def test_bfloat16_labels_differ_by_less_than_two_levels(shared):
    golden = parity.Case(shared / "golden" / "expert_edge")
    variables = Edge().from_official(golden.state())
    made = [Edge(dtype=d).predict([golden["image"]], variables)[0].map.astype(int) for d in ("float32", "bfloat16")]
    assert 0 < np.abs(made[0] - made[1]).mean() < 2  # 0.3; 0.5 and 0.7 on two other photos


def test_channels_become_those_of_opencv_without_their_mean():
    colour = jnp.asarray([[[[124, 116, 104]]]], jnp.uint8)  # ImageNet's mean in red, green, blue, rounded
    np.testing.assert_allclose(Edge().normalize(colour)[0, 0, 0], [0.47, -0.28, 0.325], atol=1e-4)


def test_edges_are_dark_cut_off_and_fill_the_range():
    np.testing.assert_array_equal(to_grey(np.array([[0.25, 0.5], [0.375, 0.25]], np.float32)), [[255, 0], [128, 255]])
    np.testing.assert_array_equal(to_grey(np.full((2, 3), 0.5, np.float32)), 255)


@pytest.mark.parametrize("size", [(1, 1), (7, 300)])
def test_labels_have_the_photos_size(size):
    edge = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    label = Edge().finish({"edge": edge}, size, {}).map
    assert label.shape == (*size, 1)
    assert label.dtype == np.uint8
