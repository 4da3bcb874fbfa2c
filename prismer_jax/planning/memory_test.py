import re

import jax
import jax.numpy as jnp

from prismer_jax.planning import memory

WIDTH, BATCH, LAYERS = 256, 4096, 8


def test_memory_is_told_apart():
    """A gradient of a chain of layers keeps the output of each, and the parameters' gradients."""
    kernels = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    frozen = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    state = {"params": {"kernels": kernels, "frozen": frozen}, "opt": (kernels, kernels)}
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)

    def update(state, batch):
        def loss(kernels):
            out, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), batch, kernels)
            return out.sum()

        gradient = jax.grad(loss)(state["params"]["kernels"])
        norm = jnp.sqrt((gradient**2).sum())  # every one of them is needed before the first update
        kernels = state["params"]["kernels"] - gradient / norm
        return {"params": state["params"] | {"kernels": kernels}, "opt": state["opt"]}

    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    lines = memory.lines(state, {"kernels": kernels}, batch, compiled)
    count = LAYERS * WIDTH * WIDTH
    numbers = {line.split("  ")[0].strip(): re.findall(r"[\d,]+(?= )", line) for line in lines}
    assert numbers["parameters"][0] == f"{count + WIDTH:,}"
    assert numbers["gradients"][0] == f"{count:,}"
    assert numbers["optimizer's state"][0] == f"{2 * count:,}"
    activations = float(lines[-2].split()[-2]) * 2**30
    kept = LAYERS * BATCH * WIDTH * 4
    assert 0.9 * kept < activations < 6 * kept
    assert re.match(r"a step takes 0\.\d\d GiB of each", lines[-1])
