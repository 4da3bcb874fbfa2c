import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax.checkpoint.fingerprint import fingerprint


def test_fingerprint_is_of_names_places_and_bits_wherever_they_lie():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(8, 3, 5)).astype(np.float32),
        "b": {"c": jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16), "d": np.arange(6, dtype=np.int32)},
        "e": np.float32(3.0),
        "f": np.array([True, False]),
    }
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = {**arrays, "a": jax.device_put(arrays["a"], jax.NamedSharding(mesh, jax.P("data")))}
    assert fingerprint(split) == fingerprint(arrays) == fingerprint(jax.tree.map(jnp.asarray, arrays))
    swapped = arrays["a"].copy()
    swapped[0, 0, :2] = swapped[0, 0, 1::-1]
    nudged = arrays["a"].copy()
    nudged[7, 2, 4] = np.nextafter(nudged[7, 2, 4], 9)
    others = [
        {**arrays, "a": swapped},
        {**arrays, "a": nudged},
        {**arrays, "a": arrays["a"].reshape(8, 5, 3)},
        {**arrays, "a": arrays["a"][::-1].copy()},
        {**arrays, "e": np.float32(-3.0)},
        {**arrays, "f": np.array([False, True])},
        {("g" if name == "e" else name): value for name, value in arrays.items()},
    ]
    assert len({fingerprint(other) for other in [arrays, *others]}) == 1 + len(others)
