import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts.edge import Edge, to_grey


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
