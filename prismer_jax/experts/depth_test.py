import re

import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.convert import rules
from prismer_jax.errors import UserError
from prismer_jax.experts.depth import Depth, stretch
from tools import parity


@pytest.fixture(scope="module")
def golden(shared):
    return parity.Case(shared / "golden" / "expert_depth_small")


def test_every_official_key_is_read_or_known_to_be_of_no_use(golden):
    expert, tensors = Depth(), golden.manifest["tensors"]
    read = rules.key_shapes(expert.table, expert.shapes)
    ignored = {key for key in tensors if any(re.fullmatch(pattern, key) for pattern in expert.table.ignored)}
    assert ignored == set(golden.manifest["unused_keys"])
    assert {key: list(shape) for key, shape in read.items()} == {
        key: entry["shape"] for key, entry in tensors.items() if key not in ignored
    }
    state = {key: np.broadcast_to(np.float32(0), entry["shape"]) for key, entry in tensors.items()}
    del state["scratch.output_conv.4.bias"]
    with pytest.raises(UserError, match=r"1 missing: scratch\.output_conv\.4\.bias"):
        expert.from_official(state)


def test_agrees_with_the_reference(golden):
    error, reason = parity.run_case(golden)
    assert not reason
    assert error < 0.01


@pytest.mark.slow
def test_bfloat16_labels_differ_by_less_than_two_levels(golden):
    variables = Depth().from_official(golden.state())
    photo = np.clip(np.moveaxis(golden["x"][0], 0, -1) * 127.5 + 127.5, 0, 255).astype(np.uint8)
    made = []
    for dtype in ("float32", "bfloat16"):
        expert = Depth(dtype=dtype)
        expert.size = (96, 128)
        made.append(expert.predict([photo], variables)[0].map.astype(int))
    assert 0 < np.abs(made[0] - made[1]).mean() < 2  # 0.5 to 0.8 on photos


def test_maps_are_stretched_each_on_its_own_and_a_flat_one_is_black():
    maps = jnp.asarray([[[1.0, 2.0], [3.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    np.testing.assert_allclose(stretch(maps), [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]])
    label = Depth().finish({"depth": np.asarray(stretch(maps))[0]}, (3, 2), {})
    np.testing.assert_array_equal(label.map[..., 0], [[0, 63], [63, 159], [127, 255]])  # cut off, not rounded
