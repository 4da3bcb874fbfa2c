import numpy as np
import pytest

from prismer_jax.datasets.scenes import solids as solids

DIMS = {
    "sphere": (0.7,),
    "box": (0.5, 0.6, 0.4),
    "cylinder": (0.5, 1.1),
    "cone": (0.6, 1.3),
    "torus": (0.6, 0.25),
    "pyramid": (0.6, 1.2),
}


def inside(kind: str, p: np.ndarray) -> np.ndarray:
    """Whether points [3, n] lie in the solid, from its definition alone."""
    x, y, z = p
    d = DIMS[kind]
    rho = np.hypot(x, z)
    match kind:
        case "sphere":
            return x**2 + (y - d[0]) ** 2 + z**2 < d[0] ** 2
        case "box":
            return (np.abs(x) < d[0]) & (np.abs(y - d[1]) < d[1]) & (np.abs(z) < d[2])
        case "cylinder":
            return (rho < d[0]) & (y > 0) & (y < d[1])
        case "cone":
            return (rho < d[0] * (1 - y / d[1])) & (y > 0) & (y < d[1])
        case "torus":
            return (rho - d[0]) ** 2 + (y - d[1]) ** 2 < d[1] ** 2
        case _:
            return (np.maximum(np.abs(x), np.abs(z)) < d[0] * (1 - y / d[1])) & (y > 0)


def rays(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Origins on a distant dome and directions, not of unit length, to points about the solid."""
    rng = np.random.RandomState(seed)
    o = rng.standard_normal((3, n))
    o[1] = np.abs(o[1]) + 0.1
    o = 5 * o / np.linalg.norm(o, axis=0)
    target = np.stack([rng.uniform(-1, 1, n), rng.uniform(0, 1.3, n), rng.uniform(-1, 1, n)])
    return o.astype(np.float32), ((target - o) * rng.uniform(0.1, 0.4, n)).astype(np.float32)


@pytest.mark.parametrize("kind", DIMS)
def test_the_first_hit_is_where_a_march_along_the_ray_enters_the_solid(kind):
    o, d = rays(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = solids.intersect(kind, DIMS[kind], o, d)
    steps = np.linspace(0, 30, 6001)
    marched = inside(kind, (o[:, :, None] + d[:, :, None] * steps).astype(np.float64).reshape(3, -1)).reshape(
        len(t), -1
    )
    hit = marched.any(1)
    assert 0.1 < hit.mean() < 0.9
    both = hit & np.isfinite(t)
    np.testing.assert_allclose(t[both], steps[marched.argmax(1)][both], atol=0.02)  # a step is 0.005
    # Only rays that graze the solid may differ: between two steps of the march, or of the torus's sphere tracing.
    assert (hit & ~both).mean() < 0.005
    assert (np.isfinite(t) & ~hit).mean() < 0.03


@pytest.mark.parametrize("kind", DIMS)
def test_normals_point_out_of_the_surface_and_are_units(kind):
    o, d = rays(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = solids.intersect(kind, DIMS[kind], o, d)
    hit = np.isfinite(t)
    p = o[:, hit] + d[:, hit] * t[hit]
    normal, face, uv = solids.surface(kind, DIMS[kind], p)
    np.testing.assert_allclose((normal**2).sum(0), 1, atol=0.02)
    assert ((normal * d[:, hit]).sum(0) < 1e-3).mean() > 0.995  # it faces the ray that met it first
    # A little outwards is out, a little inwards is in, except beside a crease.
    assert (~inside(kind, p + 0.01 * normal)).mean() > 0.98
    assert inside(kind, p - 0.01 * normal).mean() > 0.95
    assert face.max() < 8
    assert np.isfinite(uv).all()


@pytest.mark.parametrize("kind", DIMS)
def test_bounds_are_tight(kind):
    half = solids.bounds(kind, DIMS[kind])
    rng = np.random.RandomState(0)
    p = rng.uniform((-1.5, -0.5, -1.5), (1.5, 2.5, 1.5), (400_000, 3)).T
    p = p[:, inside(kind, p)]
    np.testing.assert_allclose(np.abs(p[[0, 2]]).max(1), half[[0, 2]], rtol=0.06)
    np.testing.assert_allclose(p[1].max(), half[1], rtol=0.1)
    assert (np.abs(p[[0, 2]]).max(1) <= half[[0, 2]]).all()
    assert p[1].max() <= half[1]
