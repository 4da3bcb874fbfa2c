import jax.numpy as jnp
import numpy as np

from prismer_jax import tree
from prismer_jax.experts.normal import Normal, colours, directions
from prismer_jax.weights import rules


def test_reads_the_official_file_which_dataparallel_saved():
    expert = Normal()
    state = {
        f"module.{key}": np.zeros(shape, np.int64 if key.endswith("num_batches_tracked") else np.float32)
        for key, shape in rules.key_shapes(expert.table, expert.shapes).items()
    }
    assert tree.flatten(expert.from_official(state)).keys() == expert.shapes.keys()


def test_directions_are_unit_vectors_beside_a_positive_concentration():
    x = jnp.asarray([[[[3.0, 0, -4, 2], [0, 0, 0, -1]]]])
    np.testing.assert_allclose(directions(x)[0, 0], [[0.6, 0, -0.8, 3.01], [0, 0, 0, np.exp(-1) + 0.01]], atol=1e-6)
    assert directions(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_labels_have_the_photos_size_and_the_normals_as_colours():
    estimate = jnp.asarray([[[[1.0, 0, -1, 5]]]])
    label = Normal().finish({"normal": np.asarray(colours(estimate))[0]}, (2, 3), {}).map
    np.testing.assert_array_equal(label, np.broadcast_to(np.uint8([255, 127, 0]), (2, 3, 3)))
