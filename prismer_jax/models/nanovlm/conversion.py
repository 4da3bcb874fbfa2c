"""Which key of nanoVLM's model.safetensors is which parameter."""

from __future__ import annotations

from prismer_jax.weights import rows
from prismer_jax.weights.rules import Rule, Table

_VISION, _BLOCK = "vision_encoder", "vision_encoder.blocks.{}"
_LAYER = "decoder.blocks.{}"


def _kernel(key: str, name: str) -> Rule:
    """Linear without bias."""
    return Rule(f"{key}.weight", (f"params/{name}/kernel",), "dense")


def _packed(key: str, name: str) -> list[Rule]:
    """Query, key and value in one Linear."""
    names = [f"params/{name}/{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{key}.weight", tuple(f"{n}/kernel" for n in names), "dense"),
        Rule(f"{key}.bias", tuple(f"{n}/bias" for n in names)),
    ]


TABLE = Table(
    rules=(
        Rule(f"{_VISION}.patch_embedding.position_embedding", ("params/vision/position_embedding",), "leading"),
        Rule(f"{_VISION}.patch_embedding.conv.weight", ("params/vision/patch_embedding",), "conv"),
        Rule(f"{_VISION}.patch_embedding.conv.bias", ("params/vision/patch_bias",)),
        *rows.norm(f"{_BLOCK}.ln1", "vision/blocks/norm_attention"),
        *_packed(f"{_BLOCK}.attn.qkv_proj", "vision/blocks/attention"),
        *rows.dense(f"{_BLOCK}.attn.out_proj", "vision/blocks/attention/out"),
        *rows.norm(f"{_BLOCK}.ln2", "vision/blocks/norm_mlp"),
        *rows.mlp(f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc2", "vision/blocks/mlp"),
        *rows.norm(f"{_VISION}.layer_norm", "vision/norm"),
        _kernel("MP.proj", "projector"),
        Rule("decoder.head.weight", ("params/language/word_embedding",)),
        Rule("decoder.token_embedding.weight", ("params/language/word_embedding",), derived=True),
        Rule(f"{_LAYER}.norm1.weight", ("params/language/blocks/norm_attention/scale",)),
        *(
            _kernel(f"{_LAYER}.attn.{p}_proj", f"language/blocks/{n}")
            for p, n in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out"))
        ),
        Rule(f"{_LAYER}.norm2.weight", ("params/language/blocks/norm_mlp/scale",)),
        *(_kernel(f"{_LAYER}.mlp.{n}_proj", f"language/blocks/{n}") for n in ("gate", "up", "down")),
        Rule("decoder.norm.weight", ("params/language/norm/scale",)),
    ),
    ignored=(r"decoder\.rotary_embd\.inv_freq",),
)
