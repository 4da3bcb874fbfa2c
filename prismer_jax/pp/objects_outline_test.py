import numpy as np
import pytest

from prismer_jax import pp
from prismer_jax.errors import BadSample


def drawn(box, size=(5, 9)):
    """Returns which pixels of a black image become red."""
    example = {"image": np.zeros((*size, 3), np.uint8), "bbox": box}
    out = pp.build("outline()")(example, np.random.default_rng(0))["image"]
    assert not example["image"].any()
    assert not out[..., 1:].any()
    return (out[..., 0] == 255).astype(int).tolist()


def test_a_box_is_drawn_one_pixel_wide():
    # Rows 0.25 * 4 = 1 and 0.8 * 4 = 3.2, columns 0.25 * 8 = 2 and 0.74 * 8 = 5.92.
    assert drawn([0.25, 0.25, 0.8, 0.74]) == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_sides_outside_of_the_photo_are_not_drawn():
    assert drawn([-1.0, -1.0, 0.5, 0.25]) == [
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("box", [[-2.0, 0.0, -1.0, 1.0], [0.0, -1.0, 1.0, -0.5], [2.0, 0.0, 3.0, 1.0]])
def test_of_a_box_outside_of_the_photo_nothing_is_drawn(box):
    assert not np.any(drawn(box))


@pytest.mark.parametrize("move", ["flip(1.0)", "random_resized_crop(5)", "randaugment(2)", "blip_randaugment(2)"])
def test_a_box_is_not_drawn_where_a_moved_photo_was(move):
    example = {"image": np.zeros((5, 9, 3), np.uint8), "bbox": [0.25, 0.25, 0.8, 0.74]}
    pp.build(f"outline()|{move}")(example, np.random.default_rng(0))
    with pytest.raises(BadSample, match=r"no bbox .* to outline: ops that .* stand behind outline"):
        pp.build(f"{move}|outline()")(example, np.random.default_rng(0))


@pytest.mark.parametrize("box", [None, [0, 1], [0.9, 0.0, 0.1, 1.0]])
def test_what_is_no_box_is_named(box):
    with pytest.raises(BadSample, match="bbox"):
        drawn(box)
