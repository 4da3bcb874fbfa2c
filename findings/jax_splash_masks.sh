#!/usr/bin/env bash
# JAX's splash attention takes masks that are arrays of JAX's, for masks that only a batch knows. But such a kernel
# cannot be called within jit, not even with a constant mask: whether its mask is such an array is itself made an array,
# which the kernel then asks for as a condition. And what a query gets that no mask lets look anywhere depends on what
# its neighbours see: NaN where its whole block of queries sees nothing, else the mean of the values of the blocks that
# they see; the reference implementation beside the kernel gives the mean of all values.
# prismer_jax/towers/fused_attention.py leaves that field out, and gives a query that sees nothing the first key.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'P' 2>/dev/null
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

print("jax", jax.__version__)
q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 256, 64))


def attend(mask, q, k, v):
    return splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=True)(q, k, v)


causal = np.tri(256, dtype=bool)[None]
expected = splash.attention_reference(jnp.asarray(causal[0]), q[0], k[0], v[0], None)
outside = float(jnp.abs(attend(jnp.asarray(causal), q, k, v)[0] - expected).max())
print(f"a mask of JAX's outside of jit: at most {outside:.0e} from the reference")
assert outside < 1e-5
try:
    jax.jit(attend)(jnp.asarray(causal), q, k, v)
    raised = "nothing"
except jax.errors.TracerBoolConversionError as error:
    raised = type(error).__name__
print("within jit it raises", raised)
assert raised == "TracerBoolConversionError"
for who, blind in {"one query": slice(3, 4), "a whole block of queries": slice(128, 256)}.items():
    mask = causal.copy()
    mask[:, blind] = False
    ours = attend(mask, q, k, v)[0, blind][0]
    reference = splash.attention_reference(jnp.asarray(mask[0]), q[0], k[0], v[0], None)[blind][0]
    means = {"NaN": jnp.full(64, jnp.nan), "the mean of 128 values": v[0, :128].mean(0), "that of all 256": v[0].mean(0)}
    named = [
        next((name for name, value in means.items() if np.allclose(value, given, atol=1e-5, equal_nan=True)), "another")
        for given in (ours, reference)
    ]
    print(f"{who} that may look nowhere: {named[0]}; the reference: {named[1]}")
    assert named == ["NaN" if who.startswith("a") else "the mean of 128 values", "that of all 256"]
P
