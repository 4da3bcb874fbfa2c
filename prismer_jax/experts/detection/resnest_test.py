import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts.detection import fpn, resnest


def test_branches_are_a_grouped_convolution_and_their_weights_add_up_to_one():
    block = resnest.SplitAttention(8)
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    variables = jax.jit(block.init)(jax.random.key(1), x)
    apply = jax.jit(block.apply)
    y = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    y = jax.nn.relu(y / (1 + 1e-5) ** 0.5)  # an untrained norm
    # Attention without weights has no preference: the mean of both branches.
    flat = jax.tree.map(jnp.zeros_like, variables["params"]["attend"])
    even = apply({**variables, "params": {**variables["params"], "attend": flat}}, x)
    np.testing.assert_allclose(even, (y[..., :8] + y[..., 8:]) / 2, atol=1e-5)
    # A strong preference for the second branch of every channel.
    prefer = {**flat, "bias": jnp.repeat(jnp.asarray([-50.0, 50.0]), 8)}
    second = apply({**variables, "params": {**variables["params"], "attend": prefer}}, x)
    np.testing.assert_allclose(second, y[..., 8:], atol=1e-5)


@pytest.mark.parametrize("depth", resnest.BLOCKS)
def test_any_depth_gives_maps_of_four_scales_for_a_pyramid_of_five(depth):
    def run(x):
        maps, variables = resnest.ResNeSt(resnest.BLOCKS[depth]).init_with_output(jax.random.key(0), x)
        return maps, fpn.FPN().init_with_output(jax.random.key(0), maps[1:])[0], variables

    maps, levels, variables = jax.eval_shape(run, jnp.zeros((2, 96, 64, 3)))
    assert [x.shape for x in maps] == [(2, 24, 16, 256), (2, 12, 8, 512), (2, 6, 4, 1024), (2, 3, 2, 2048)]
    assert [x.shape for x in levels] == [
        (2, 12, 8, 256),
        (2, 6, 4, 256),
        (2, 3, 2, 256),
        (2, 2, 1, 256),
        (2, 1, 1, 256),
    ]
    # Every convolution and attention of a block counts: three layers a block, three of the stem, the classifier.
    assert 3 * sum(resnest.BLOCKS[depth]) + 2 == depth
    stacked = variables["params"]["stage_2_rest"]["split"]["kernel"]
    assert stacked.shape == (resnest.BLOCKS[depth][2] - 1, 3, 3, 128, 512)


def test_equal_blocks_one_after_the_other():
    net = resnest.ResNeSt((1, 3), stem=4, width=4, features=8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: 0.1 + 0.5 * rng.random(leaf.shape, np.float32), dict(shapes))
    maps = jax.jit(net.apply)(variables, x)

    def block(x, index, **sizes):
        own = jax.tree.map(lambda leaf: leaf[index], {k: v["stage_1_rest"] for k, v in variables.items()})
        return jax.jit(resnest.Bottleneck(16, 8).apply)(own, x)

    first = {k: v["stage_1_first"] for k, v in variables.items()}
    y = jax.jit(resnest.Bottleneck(16, 8, 2).apply)(first, maps[0])
    np.testing.assert_allclose(maps[1], block(block(y, 0), 1), rtol=1e-4)
