import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts import aspect_ratio


@pytest.mark.parametrize(
    ("photo", "size"),
    [
        ((480, 640), (360, 480)),  # (479, 638) would be too wide
        ((640, 480), (480, 360)),
        ((500, 500), (479, 479)),
        ((1000, 1002), (479, 479)),  # 479.958 is cut off
        ((1000, 1003), (479, 480)),
        ((427, 640), (320, 480)),  # 320.25
        ((1, 1), (479, 479)),
        ((1, 480), (1, 480)),
        ((1, 2000), (1, 480)),  # torchvision: no pixel left
        ((2000, 1), (480, 1)),
    ],
)
def test_sizes_are_torchvisions(photo, size):
    assert aspect_ratio.fit(*photo) == size


def test_there_are_29_padded_sizes():
    sides = np.unique(np.geomspace(1, 4000, 500).astype(int))
    shapes = {aspect_ratio.padded(aspect_ratio.fit(h, w)) for h in sides for w in sides}
    assert len(shapes) == 29
    assert all(max(shape) == 480 and min(shape) >= 32 for shape in shapes)


def test_padding_is_zero_after_normalisation():
    image = np.full((2, 4, 6, 3), 7, np.uint8)
    x = aspect_ratio.normalize(jnp.asarray(image), jnp.asarray([[3, 6], [4, 2]]), (7.0, 5.0, 1.0), (1.0, 2.0, 3.0))
    expected = np.zeros((2, 4, 6, 3), np.float32)
    expected[0, :3], expected[1, :, :2] = (0, 1, 2), (0, 1, 2)
    np.testing.assert_allclose(x, expected)
