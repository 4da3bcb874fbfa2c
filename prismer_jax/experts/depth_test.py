import jax.numpy as jnp
import numpy as np

from prismer_jax.experts.depth import Depth, stretch


def test_maps_are_stretched_each_on_its_own_and_a_flat_one_is_black():
    maps = jnp.asarray([[[1.0, 2.0], [3.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    np.testing.assert_allclose(stretch(maps), [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]])
    label = Depth().finish({"depth": np.asarray(stretch(maps))[0]}, (3, 2), {})
    np.testing.assert_array_equal(label.map[..., 0], [[0, 63], [63, 159], [127, 255]])  # cut off, not rounded
