#!/usr/bin/env bash
# flax's DenseGeneral with batch_dims holds a kernel of its own for each element of those axes, such as the experts of a
# mixture or the heads of a layer, and draws each from a key of its own. But it hands the initialiser one matrix in which
# they stand below one another, so that they count as inputs: of 64 experts each starts at an eighth of the spread that
# nn.Dense, or nn.vmap over nn.Dense, gives it, and its outputs are as much too small. flax.nnx.LinearGeneral with
# batch_axis and nn.Einsum do the same. Seen with flax 0.12.8. No layer of prismer_jax has batch_dims.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

print("flax", flax.__version__, "jax", jax.__version__)
INPUTS, OUTPUTS = 256, 512
key = jax.random.key(0)
each = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
wrong = {}
for experts in (1, 4, 16, 64):
    x = jax.random.normal(jax.random.key(1), (experts, 32, INPUTS))
    layers = {
        "nn.vmap over nn.Dense": each(OUTPUTS),
        "nn.DenseGeneral, batch_dims": nn.DenseGeneral(OUTPUTS, batch_dims=0),
        "nn.Einsum": nn.Einsum((experts, INPUTS, OUTPUTS), "ebi,eio->ebo"),
    }
    made = {name: layer.init_with_output(key, x) for name, layer in layers.items()}
    found = {name: (y, variables["params"]["kernel"]) for name, (y, variables) in made.items()}
    general = nnx.LinearGeneral(INPUTS, OUTPUTS, batch_axis={0: experts}, rngs=nnx.Rngs(0))
    found["nnx.LinearGeneral, batch_axis"] = general(x), general.kernel[...]
    for name, (y, kernel) in found.items():
        assert kernel.shape == (experts, INPUTS, OUTPUTS)
        print(f"{experts:2} experts, {name}: kernels {kernel.std() * INPUTS**0.5:.3f} / sqrt(inputs), outputs {y.std():.3f}")
        wrong[name, experts] = 1 / float(y.std())

seen = []
nn.DenseGeneral(OUTPUTS, batch_dims=0, kernel_init=lambda _, shape, dtype: seen.append(shape) or jnp.zeros(shape)).init(
    key, jnp.ones((4, 32, INPUTS))
)
print(f"4 experts of {INPUTS} inputs and {OUTPUTS} outputs: the initialiser is asked for {seen[0]}")
for (name, experts), factor in wrong.items():
    expected = 1 if "vmap" in name else experts**0.5
    assert abs(factor / expected - 1) < 0.05, "The behaviour has changed."
assert seen[0] == (4 * INPUTS, OUTPUTS), "The behaviour has changed."
P
