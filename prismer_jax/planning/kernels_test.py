"""Plans of steps with a kernel, which XLA knows nothing of: its operations and bytes, and with libtpu what it saves."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prismer_jax import sharding
from prismer_jax.planning import program, topologies
from prismer_jax.towers import layers

# As libtpu 0.0.42 writes them, shortened: the attributes of a kernel take several lines.
KERNEL = """HloModule jit_f
ENTRY %main (q: bf16[4,2,1280,64], k: bf16[4,2,640,64]) -> bf16[4,2,1280,64] {
  %q = bf16[4,2,1280,64]{3,2,1,0} parameter(0)
  %k = bf16[4,2,640,64]{3,2,1,0} parameter(1)
  %mask = s8[1,2,2]{2,1,0} constant({...})
  %splash_mha_fwd_residuals.1 = (bf16[4,2,1280,64]{3,2,1,0}, f32[4,2,1280,128]{3,2,1,0:T(8,128)S(1)}) custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{block_q: 640}"
}}, metadata={op_name="jit(f)/pallas_call"}
  ROOT %out = bf16[4,2,1280,64]{3,2,1,0} get-tuple-element(%splash_mha_fwd_residuals.1), index=0, frontend_attributes={kernel_metadata={
"xprof_metadata":"{block_q: 640}"
}}
}
"""  # noqa: E501  (lines of XLA's)


def test_a_kernels_products_and_operands_count():
    facts = program.facts(KERNEL, 1)
    assert facts["flops"] == 2 * 2 * (4 * 2 * 1280 * 640 * 64)
    q, k = 2 * 4 * 2 * 1280 * 64, 2 * 4 * 2 * 640 * 64
    assert facts["traffic"] == 4 + q + 2 * k + q  # what stays on the chip is no traffic


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[plan]"
)
@pytest.mark.parametrize(
    ("tokens", "groups", "channels", "dtype", "masked"),
    [
        (1220, 4, 80, "bfloat16", False),
        (964, 4, 64, "float32", False),
        (4096, 2, 64, "bfloat16", True),
        (2304, 1, 256, "float32", True),
    ],
)
def test_attention_in_one_kernel_moves_less_and_keeps_less(monkeypatch, tokens, groups, channels, dtype, masked):
    """Of photos of 480 pixels, rows of nanoVLM's, heads of PaliGemma's; in blocks that fit a TPU v4's scratch memory.

    With a mask, what it leaves out counts, as nobody knows how much it is.
    """

    def planned(topology):
        mesh = sharding.make_mesh(None, topologies.describe(topology).devices)
        place = NamedSharding(mesh, PartitionSpec("data"))
        q, k = (
            jax.ShapeDtypeStruct((4 * mesh.size, tokens, heads, channels), jnp.dtype(dtype), sharding=place)
            for heads in (4, groups)
        )
        mask = jax.ShapeDtypeStruct((4 * mesh.size, tokens, tokens), bool, sharding=place) if masked else None

        def loss(q, k, v, mask):
            return jnp.square(layers.attend(q, layers.Keys(k, v, mask)).astype(jnp.float32)).sum()

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, mask).compile()
        return program.facts(compiled.as_text(), mesh.size), compiled.memory_analysis().temp_size_in_bytes

    fused, kept = planned("v5e:2x2")
    planned("v4:2x2x1")
    monkeypatch.setattr(layers, "FUSED_MASKED" if masked else "FUSED", tokens + 1)
    plain, all_kept = planned("v5e:2x2")
    block = 128 if masked else 256
    padded = (-(-tokens // block) * block / tokens) ** 2
    assert fused["flops"] == pytest.approx(7 / 6 * padded * plain["flops"], rel=0.02)  # logits are made again
    least = 2 if masked else 3  # a mask takes four bytes a pair
    assert fused["traffic"] < plain["traffic"] / least
    assert kept < all_kept / least
