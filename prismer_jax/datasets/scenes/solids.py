"""Where rays meet solids, in closed form (the torus by sphere tracing), and what the surface is like there.

Local axes as the world's, the base centre at the origin. Sizes by kind: sphere (radius,), box (half width, half height,
half depth), cylinder and cone (radius, height), torus (ring radius, tube radius), pyramid (half base, height).
Arrays are float32 with the component first: origins [3, n] or [3, 1], directions [3, n] or [3, 1], of any length.
"""

from __future__ import annotations

import math

import numpy as np

MISS = np.float32(np.inf)
_EPS = 1e-4
_TORUS_STEPS, _TORUS_ROUNDS, _TORUS_GAP = 14, 3, 1e-3


def intersect(kind: str, dims: tuple[float, ...], o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Returns the ray parameter t of the first hit in front of the origin, float32 [n]; inf where the ray misses.

    Rays start outside of the solid. Call it under np.errstate(divide="ignore", invalid="ignore").
    """
    match kind:
        case "sphere":
            t0, _ = _quadric(o[1] - dims[0], d[1], dims[0] ** 2, o, d)
        case "box":
            t0 = _box(dims, o, d)
        case "cylinder":
            side0, side1 = _quadric(np.float32(0), np.float32(0), dims[0] ** 2, o, d)
            slab0, slab1 = _slab(0.0, dims[1], o[1], d[1])
            t0, t1 = np.maximum(side0, slab0), np.minimum(side1, slab1)
            t0 = np.where(t0 <= t1, t0, MISS)
        case "cone":
            t0 = _cone(dims, o, d)
        case "torus":
            t0 = _torus(dims, o, d)
        case "pyramid":
            t0 = _pyramid(dims, o, d)
        case _:
            raise ValueError(f"{kind!r} is no solid")
    return np.where(t0 > _EPS, t0, MISS)  # also turns the NaN of a missed quadric into a miss


def surface(kind: str, dims: tuple[float, ...], p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns unit normals [3, m], face numbers [m] and texture coordinates [2, m] of points [3, m] on the surface.

    Faces meet at creases; one unit of the texture coordinates is one cell of a pattern.
    """
    x, y, z = p
    zero, face = np.zeros_like(x), np.zeros(x.shape, np.uint8)
    match kind:
        case "sphere":
            r = dims[0]
            normal = np.stack([x, y - r, z]) / np.float32(r)
            uv = np.stack([np.arctan2(x, z) * (4 / math.pi), y * (2.5 / r)])
        case "box":
            half = np.array(dims, np.float32)[:, None]
            q = (p - np.array([[0], [dims[1]], [0]], np.float32)) / half
            axis = np.abs(q).argmax(0)
            sign = np.sign(np.take_along_axis(q, axis[None], 0)[0])
            face = (2 * axis + (sign > 0)).astype(np.uint8)
            normal = (axis == np.arange(3)[:, None]) * sign
            uv = np.stack([np.where(axis == 0, q[2], q[0]), np.where(axis == 1, q[2], q[1])]) * np.float32(2) + 2
        case "cylinder":
            r, h = dims
            rho = np.sqrt(x * x + z * z)
            top = h - y < np.abs(r - rho)
            face = top.astype(np.uint8)
            normal = np.where(top, np.stack([zero, zero + 1, zero]), np.stack([x, zero, z]) / np.maximum(rho, 1e-6))
            uv = np.where(
                top, np.stack([x, z]) * (2 / r) + 2, np.stack([np.arctan2(x, z) * (4 / math.pi), y * (4.5 / h)])
            )
        case "cone":
            r, h = dims
            rho = np.maximum(np.sqrt(x * x + z * z), 1e-6)
            slant = math.hypot(r, h)
            normal = np.stack([x / rho * (h / slant), zero + r / slant, z / rho * (h / slant)])
            uv = np.stack([np.arctan2(x, z) * (4 / math.pi), y * (4.5 / h)])
        case "torus":
            ring, tube = dims
            rho = np.maximum(np.sqrt(x * x + z * z), 1e-6)
            normal = np.stack([x - x / rho * ring, y - tube, z - z / rho * ring]) / np.float32(tube)
            uv = np.stack([np.arctan2(y - tube, rho - ring) * (2 / math.pi), np.arctan2(x, z) * (6 / math.pi)])
        case "pyramid":
            planes, _ = _pyramid_planes(dims)
            sides = planes[:4]
            face = (sides @ p).argmax(0).astype(np.uint8)
            normal = sides.T[:, face]
            uv = np.stack([np.where(face < 2, z, x) * (2 / dims[0]) + 2, y * (4.5 / dims[1])])
        case _:
            raise ValueError(f"{kind!r} is no solid")
    return normal.astype(np.float32), face, uv.astype(np.float32)


def bounds(kind: str, dims: tuple[float, ...]) -> np.ndarray:
    """Returns half width, height and half depth of the box around it, [3]."""
    match kind:
        case "sphere":
            return np.array([dims[0], 2 * dims[0], dims[0]], np.float32)
        case "box":
            return np.array([dims[0], 2 * dims[1], dims[2]], np.float32)
        case "torus":
            return np.array([dims[0] + dims[1], 2 * dims[1], dims[0] + dims[1]], np.float32)
        case _:
            return np.array([dims[0], dims[1], dims[0]], np.float32)


def _quadric(oy, dy, c: float, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both roots of |(x, y, z)(t)|² = c, where the y component is handed over apart (zero: an infinite cylinder)."""
    a = d[0] * d[0] + dy * dy + d[2] * d[2]
    b = o[0] * d[0] + oy * dy + o[2] * d[2]
    root = np.sqrt(b * b - a * (o[0] * o[0] + oy * oy + o[2] * o[2] - np.float32(c)))
    return (-b - root) / a, (-b + root) / a


def _slab(low: float, high: float, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.float32(1) / d
    a, b = (np.float32(low) - o) * inverse, (np.float32(high) - o) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _box(dims: tuple[float, ...], o: np.ndarray, d: np.ndarray) -> np.ndarray:
    x0, x1 = _slab(-dims[0], dims[0], o[0], d[0])
    y0, y1 = _slab(0.0, 2 * dims[1], o[1], d[1])
    z0, z1 = _slab(-dims[2], dims[2], o[2], d[2])
    t0, t1 = np.maximum(np.maximum(x0, y0), z0), np.minimum(np.minimum(x1, y1), z1)
    return np.where(t0 <= t1, t0, MISS)


def _cone(dims: tuple[float, ...], o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The mantle only: the base lies on the ground, and every ray through the body crosses the mantle."""
    r, h = dims
    k = np.float32((r / h) ** 2)
    ow, dw = np.float32(h) - o[1], -d[1]  # distance below the apex
    a = d[0] * d[0] + d[2] * d[2] - k * dw * dw
    b = o[0] * d[0] + o[2] * d[2] - k * ow * dw
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[2] * o[2] - k * ow * ow))
    first, second = (-b - root) / a, (-b + root) / a
    first, second = (np.where((ow + t * dw >= 0) & (ow + t * dw <= h) & (t > _EPS), t, MISS) for t in (first, second))
    return np.minimum(first, second)


def _torus(dims: tuple[float, ...], o: np.ndarray, d: np.ndarray) -> np.ndarray:
    ring, tube = map(np.float32, dims)
    length = np.sqrt((d * d).sum(0))
    d = d / length
    enter, leave = _quadric(o[1] - tube, d[1], float(ring + tube) ** 2, o, d)
    t = np.where(np.isnan(enter), MISS, np.maximum(enter, 0))
    out = np.full(t.shape, MISS)
    active = np.flatnonzero((t < MISS) & (leave > 0))  # only within the bounding sphere
    for _ in range(_TORUS_ROUNDS):
        ox, oy, oz = (c[active] if c.size > 1 else c for c in o)
        dx, dy, dz = (c[active] if c.size > 1 else c for c in d)
        s = t[active]
        for _ in range(_TORUS_STEPS):
            x, y, z = ox + s * dx, oy + s * dy - tube, oz + s * dz
            q = np.sqrt(x * x + z * z) - ring
            gap = np.sqrt(q * q + y * y) - tube
            s = s + gap
        t[active] = s
        out[active] = np.where(gap < _TORUS_GAP, s, MISS)
        active = active[(gap >= _TORUS_GAP) & (s < leave[active])]  # rays that graze it take long
    return out / length


def _pyramid_planes(dims: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Outward unit normals [5, 3] (x, -x, z, -z, base) and offsets [5, 1] of n·p = k."""
    b, h = dims
    s = math.hypot(b, h)
    normals = np.array([(h, b, 0), (-h, b, 0), (0, b, h), (0, b, -h), (0, -s, 0)], np.float32) / np.float32(s)
    return normals, np.array([b * h / s] * 4 + [0], np.float32)[:, None]


def _pyramid(dims: tuple[float, ...], o: np.ndarray, d: np.ndarray) -> np.ndarray:
    normals, offsets = _pyramid_planes(dims)
    slope = normals @ d
    t = (offsets - normals @ o) / slope
    enter = np.where(slope < 0, t, -MISS).max(0)
    leave = np.where(slope > 0, t, MISS).min(0)
    return np.where(enter <= leave, enter, MISS)
