import re

import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.convert import rules
from prismer_jax.errors import UserError
from prismer_jax.experts.normal import Normal, colours, directions
from tools import parity


@pytest.fixture(scope="module")
def golden(shared):
    return parity.Case(shared / "golden" / "expert_normal_small")


def test_every_official_key_is_read_or_known_to_be_of_no_use(golden):
    expert, tensors = Normal(), golden.manifest["tensors"]
    read = rules.key_shapes(expert.table, expert.shapes)
    ignored = {key for key in tensors if any(re.fullmatch(pattern, key) for pattern in expert.table.ignored)}
    assert ignored == set(golden.manifest["unused_keys"])
    assert {key: list(shape) for key, shape in read.items()} == {
        key: entry["shape"] for key, entry in tensors.items() if key not in ignored
    }
    # The official file was saved by DataParallel.
    state = {f"module.{key}": np.broadcast_to(np.float32(0), e["shape"]) for key, e in tensors.items()}
    state = {key: array.astype(np.int64) if "num_batches" in key else array for key, array in state.items()}
    assert tree.flatten(expert.from_official(state)).keys() == expert.shapes.keys()
    del state["module.encoder.original_model.blocks.6.2.conv_dw.weight"]
    with pytest.raises(UserError, match=r"1 missing: encoder\.original_model\.blocks\.6\.2\.conv_dw\.weight"):
        expert.from_official(state)


def test_agrees_with_the_reference(golden):
    error, reason = parity.run_case(golden)
    assert not reason
    assert error < 0.01


@pytest.mark.slow
def test_the_whole_way_from_a_photo_agrees_with_the_reference(shared):
    assert parity.run_case(parity.Case(shared / "golden" / "expert_normal"))[1] == ""


@pytest.mark.slow
def test_bfloat16_labels_differ_by_less_than_two_levels(shared):
    golden = parity.Case(shared / "golden" / "expert_normal")
    variables = Normal().from_official(golden.state())
    made = [Normal(dtype=d).predict([golden["image"]], variables)[0].map.astype(int) for d in ("float32", "bfloat16")]
    assert 0 < np.abs(made[0] - made[1]).mean() < 2  # 0.5; 0.6 and 0.4 on two other photos


def test_directions_are_unit_vectors_beside_a_positive_concentration():
    x = jnp.asarray([[[[3.0, 0, -4, 2], [0, 0, 0, -1]]]])
    np.testing.assert_allclose(directions(x)[0, 0], [[0.6, 0, -0.8, 3.01], [0, 0, 0, np.exp(-1) + 0.01]], atol=1e-6)
    assert directions(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_labels_have_the_photos_size_and_the_normals_as_colours():
    estimate = jnp.asarray([[[[1.0, 0, -1, 5]]]])
    label = Normal().finish({"normal": np.asarray(colours(estimate))[0]}, (2, 3), {}).map
    np.testing.assert_array_equal(label, np.broadcast_to(np.uint8([255, 127, 0]), (2, 3, 3)))
