#!/usr/bin/env bash
# An array divided by a number is not divided on a CPU: XLA multiplies it by the reciprocal, once rounded, so that in
# float32 41 / 41 is 0.99999994 and 21 / 7 is 3.0000002. This is so in jit and out of it, for a constant and for an
# argument, and likewise for rows divided by a number each; a number by a number, and an array by an array of the same
# shape, are divided as in NumPy. So jnp.mean of 41 ones is below 1, jnp.floor(x / 41) is one too small for many
# multiples of 41, and jnp.ceil(x / 7) one too large for most multiples of 7; x // 41 and -(-x // 7) are right. JAX
# itself meets it: jax.image.resize by "nearest", asked for half of a row, takes the odd pixels for most widths, but of
# 82, 94, 110 or 122 pixels even ones, or some of either, with gaps of one to three pixels: label maps are shifted or
# torn. Each such pixel lies on the border of two, and either is as near, but it is not always the same one. Seen with
# jax 0.10.2 and 0.12.0.1, whose pixels differ; $JAX names another version. prismer_jax resizes nothing by "nearest" in
# JAX, and counts the samples of a RoIAlign, ceil(x / 7), exactly (prismer_jax/experts/detection/roi_align.py and its
# test).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
version=${JAX:-0.10.2}
"$folder/venv/bin/pip" install -q --disable-pip-version-check "jax==$version" "jaxlib==$version" numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
n, one = 41.0, np.float32(1)
numbers = jnp.full((3, 64), n)
quotients = {
    "an array by a number": numbers / n,
    "an array by a number in jit": jax.jit(lambda x: x / n)(numbers),
    "an array by an argument of jit": jax.jit(jnp.divide)(numbers, n),
    "rows by a number each": numbers / jnp.full((3, 1), n),
    "the mean of 41 ones": jnp.mean(jnp.ones(41)),
    "an array by an array": numbers / numbers,
    "a number by a number": jnp.float32(n) / jnp.float32(n),
    "an array by a number in NumPy": np.asarray(numbers) / np.float32(n),
}
for name, quotient in quotients.items():
    print(f"41 / 41, {name}: {np.asarray(quotient).min():.8f}")
inexact = {name for name, quotient in quotients.items() if (np.asarray(quotient) != one).any()}

whole = jnp.arange(2000.0)
wrong = {
    "floor(x / 41)": jnp.floor(41 * whole / 41) != whole,
    "ceil(x / 7)": jnp.ceil(7 * whole / 7) != whole,
    "x // 41": 41 * whole // 41 != whole,
    "-(-x // 7)": -(-7 * whole // 7) != whole,
}
wrong = {name: int(each.sum()) for name, each in wrong.items()}
for name, count in wrong.items():
    print(f"of 2000 multiples, {name} is wrong for {count}")

others = {}
for width in (64, 80, 82, 94, 96, 110, 122, 128):
    columns = np.asarray(jax.image.resize(jnp.arange(width), (width // 2,), "nearest"))
    others[width] = int((columns != np.arange(1, width, 2)).sum())
    gaps = sorted({*np.diff(columns).tolist()})
    print(f"half of {width} columns: {columns[:9].tolist()} ..., gaps of {gaps}, {others[width]} are not the odd ones")
assert inexact == {*list(quotients)[:5]}, "The behaviour has changed."
assert [count > 0 for count in wrong.values()] == [True, True, False, False], "The behaviour has changed."
assert {width for width in others if others[width]} == {82, 94, 110, 122}, "The behaviour has changed."
P
