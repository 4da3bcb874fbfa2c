import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.experts.segmentation import swin


def test_index_says_how_far_pixels_are_apart():
    index, window = swin.relative_position_index(3), 3
    for query in range(9):
        for key in range(9):
            dy, dx = query // 3 - key // 3, query % 3 - key % 3
            assert index[query, key] == (dy + 2) * (2 * window - 1) + dx + 2
    np.testing.assert_array_equal(swin.index_of_table((25, 7)), index)


def test_shifted_windows_keep_regions_apart_and_others_have_only_one():
    assert not np.asarray(swin.regions((4, 8), 4, jnp.asarray(0))).any()
    added = np.asarray(swin.regions((4, 8), 4, jnp.asarray(2))).reshape(2, 4, 4, 4, 4)
    # After the shift, the lower half of the map's only row of windows comes from above, the right half of the last
    # window from the left.
    for window, y, x, v, u in np.ndindex(added.shape):
        same = (y < 2) == (v < 2) and (window == 0 or (x < 2) == (u < 2))
        assert added[window, y, x, v, u] == (0 if same else -100)


def reference_block(params, x, window, shift, heads):
    """The block from its definition: the padded map pixel by pixel, each with its own window."""
    height, width, channels = x.shape
    size = [-(-n // window) * window for n in (height, width)]

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    padded = np.zeros((*size, channels))
    padded[:height, :width] = norm(x, params["norm_attention"])
    q, k, v = np.split(padded @ params["qkv"]["kernel"] + params["qkv_bias"], 3, -1)
    q, k, v = (part.reshape(*size, heads, -1) for part in (q, k, v))
    out = np.zeros((*size, channels))
    for y, x_ in np.ndindex(*size):
        at = [(y - shift) % size[0], (x_ - shift) % size[1]]  # where the shift puts the pixel
        keys, logits = [], []
        for v_, u in np.ndindex(*size):
            to = [(v_ - shift) % size[0], (u - shift) % size[1]]
            if any(a // window != b // window for a, b in zip(at, to, strict=True)):
                continue
            (dy, dx) = (a % window - b % window + window - 1 for a, b in zip(at, to, strict=True))
            logit = (q[y, x_] * k[v_, u]).sum(-1) * (channels // heads) ** -0.5
            logit = logit + params["bias_table"][dy * (2 * window - 1) + dx]
            # Pixels that the shift brought around are of another region.
            around = [(a >= n - shift) != (b >= n - shift) for a, b, n in zip(at, to, size, strict=True)]
            keys.append((v_, u))
            logits.append(logit - 100 * (shift > 0 and any(around)))
        weights = np.exp(np.stack(logits))
        weights /= weights.sum(0)
        out[y, x_] = sum(w[:, None] * v[key] for w, key in zip(weights, keys, strict=True)).reshape(-1)
    x = x + out[:height, :width] @ params["out"]["kernel"] + params["out"]["bias"]
    y = norm(x, params["norm_mlp"]) @ params["mlp"]["up"]["kernel"] + params["mlp"]["up"]["bias"]
    y = np.asarray(jax.nn.gelu(y, approximate=False))
    return x + y @ params["mlp"]["down"]["kernel"] + params["mlp"]["down"]["bias"]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(3, 5), (4, 8)])  # smaller than the window, and whole windows
def test_block_equals_its_definition(size, shift):
    block, rng = swin.Block(heads=2, window=4), np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, 6)), jnp.float32)
    params = jax.jit(block.init)(jax.random.key(0), x, jnp.asarray(shift))["params"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape) * 0.5, jnp.float32), params)
    out, _ = jax.jit(block.apply)({"params": params}, x, jnp.asarray(shift))
    for photo, expected in zip(np.asarray(out), np.asarray(x, np.float64), strict=True):
        np.testing.assert_allclose(photo, reference_block(params, expected, 4, shift, 2), rtol=1e-4, atol=1e-4)


def test_merge_takes_the_pixel_below_second_and_pads_odd_sides():
    merge, x = swin.Merge(), jnp.arange(1.0, 7).reshape(1, 3, 2, 1)
    params = merge.init(jax.random.key(0), x)["params"]
    params["out"]["kernel"] = jnp.eye(4)[:, :2]  # the first two channels of what is merged
    out = merge.apply({"params": params}, x)
    expected = []
    for four in ([1, 3, 2, 4], [5, 0, 6, 0]):
        four = np.asarray(four)
        expected.append(((four - four.mean()) / np.sqrt(four.var() + 1e-5))[:2])
    np.testing.assert_allclose(out[0, :, 0], expected, rtol=1e-5)


def test_sides_are_rounded_up_and_the_official_size_has_swin_l_s_parameters():
    backbone = swin.Swin()
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 195_201_204
    out = jax.eval_shape(backbone.apply, shapes, jnp.zeros((1, 57, 90, 3)))
    assert {name: x.shape[1:] for name, x in out.items()} == {
        "res2": (15, 23, 192),
        "res3": (8, 12, 384),
        "res4": (4, 6, 768),
        "res5": (2, 3, 1536),
    }
