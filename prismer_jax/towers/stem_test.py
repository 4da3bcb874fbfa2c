import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.towers import stem


def resize_by_hand(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with aligned corners, one output pixel at a time."""
    out = np.zeros((len(x), *size, x.shape[-1]))
    for i, j in np.ndindex(size):
        y, z = (at * (old - 1) / max(new - 1, 1) for at, old, new in zip((i, j), x.shape[1:3], size, strict=True))
        a, b = min(int(y), max(x.shape[1] - 2, 0)), min(int(z), max(x.shape[2] - 2, 0))
        c, d = min(a + 1, x.shape[1] - 1), min(b + 1, x.shape[2] - 1)
        top = (1 - (z - b)) * x[:, a, b] + (z - b) * x[:, a, d]
        bottom = (1 - (z - b)) * x[:, c, b] + (z - b) * x[:, c, d]
        out[:, i, j] = (1 - (y - a)) * top + (y - a) * bottom
    return out


def test_resize_aligns_corners():
    x = np.random.RandomState(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    for size in ((4, 3), (12, 7), (1, 1), (9, 7)):
        np.testing.assert_allclose(stem.resize(jnp.asarray(x), size), resize_by_hand(x, size), atol=1e-5)


def test_resized_ids_are_looked_up_then_resized():
    """The fast path must equal the 64-channel map of full resolution that it never makes."""
    rng = np.random.RandomState(0)
    ids = rng.choice([0, 3, 255], (2, 11, 8)).astype(np.uint8)
    for palettes in (1, 2):
        palette = rng.standard_normal((palettes, 256, 5)).astype(np.float32)
        full = np.stack([palette[b % palettes][ids[b]] for b in range(2)])
        for size in ((3, 2), (11, 8), (13, 9)):
            ours = stem.resize_ids(jnp.asarray(ids), jnp.asarray(palette), size)
            np.testing.assert_allclose(ours, resize_by_hand(full, size), atol=1e-5)


def test_resized_ids_read_and_hold_only_what_they_mix():
    """Of an official map of 224x224, every stem output mixes two rows and two columns: a quarter of the pixels."""
    rng = np.random.RandomState(0)
    ids = rng.randint(0, 255, (1, 224, 224)).astype(np.uint8)
    palette = jnp.asarray(rng.standard_normal((1, 256, 64)), jnp.float32)
    lookup = jax.jit(lambda ids: stem.resize_ids(ids, palette, (56, 56)))
    read = np.isin(np.arange(224), stem.linear_taps(224, 56)[0])
    changed = np.where(read[:, None] & read, ids, 255 - ids)
    assert (changed != ids).mean() > 0.7
    np.testing.assert_array_equal(lookup(jnp.asarray(changed)), lookup(jnp.asarray(ids)))
    full = ids.size * palette.nbytes // 256  # bytes of the looked-up map that never is
    assert lookup.lower(jnp.asarray(ids)).compile().memory_analysis().temp_size_in_bytes < full / 2


def test_batch_norm_keeps_the_unbiased_variance_but_uses_the_biased_one():
    x = np.random.RandomState(0).standard_normal((3, 2, 2, 4)).astype(np.float32) * 3 + 1
    norm = stem.BatchNorm(train=True)
    variables = stem.BatchNorm().init(jax.random.key(0), jnp.asarray(x))
    y, new = norm.apply(variables, jnp.asarray(x), mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * var * 12 / 11, rtol=1e-5)
    assert new["batch_stats"]["count"] == 1
    np.testing.assert_allclose(stem.BatchNorm().apply(variables, jnp.asarray(x)), x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_instances_are_found_by_nearest_neighbour():
    """Row floor(i·in/out) of the map decides, as PyTorch's nearest does."""
    ids = np.full((1, 6, 6), 255, np.uint8)
    ids[0, 0, 0], ids[0, 2, 2], ids[0, 5, 5] = 1, 2, 3  # the last is between the pixels that are read
    rows = jnp.asarray(np.arange(256)[None] % 128)
    embedding = jnp.asarray(np.eye(128, 4, dtype=np.float32))
    out = stem.add_instances(jnp.zeros((1, 3, 3, 4)), jnp.asarray(ids), rows, embedding)
    np.testing.assert_array_equal(out[0, 0, 0], np.eye(4)[1])
    np.testing.assert_array_equal(out[0, 1, 1], np.eye(4)[2])
    assert not out[0, 2, 2].any()  # background: row 127 of the table, zeros here
