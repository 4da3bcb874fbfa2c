"""Checkpoints of Prismer and PrismerZ: the state dict of the official repository <-> variables of models.prismer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prismer_jax import tree
from prismer_jax.convert import rules
from prismer_jax.convert.rules import Rule
from prismer_jax.models.layers import resize_positions
from prismer_jax.models.prismer import Prismer

POSITIONS = "expert_encoder.positional_embedding"
_STEMS = ("depth", "normal", "edge", "seg", "obj_detection", "ocr_detection")


def _dense(key: str, name: str) -> list[Rule]:
    return [
        Rule(f"{key}.weight", (f"params/{name}/kernel",), "dense"),
        Rule(f"{key}.bias", (f"params/{name}/bias",)),
    ]


def _norm(key: str, name: str) -> list[Rule]:
    return [
        Rule(f"{key}.weight", (f"params/{name}/scale",)),
        Rule(f"{key}.bias", (f"params/{name}/bias",)),
    ]


def _packed_attention(key: str, name: str) -> list[Rule]:
    """PyTorch's MultiheadAttention: query, key, value in one matrix."""
    packed = [f"params/{name}/{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{key}.in_proj_weight", tuple(f"{p}/kernel" for p in packed), "dense"),
        Rule(f"{key}.in_proj_bias", tuple(f"{p}/bias" for p in packed)),
        *_dense(f"{key}.out_proj", f"{name}/out"),
    ]


def _mlp(up: str, down: str, name: str) -> list[Rule]:
    return [*_dense(up, f"{name}/up"), *_dense(down, f"{name}/down")]


def _roberta_attention(key: str, name: str) -> list[Rule]:
    return [
        *_dense(f"{key}.self.query", f"{name}/query"),
        *_dense(f"{key}.self.key", f"{name}/key"),
        *_dense(f"{key}.self.value", f"{name}/value"),
        *_dense(f"{key}.output.dense", f"{name}/out"),
    ]


def _roberta_layer(key: str, name: str) -> list[Rule]:
    return [
        *_roberta_attention(f"{key}.attention", f"{name}/self_attention"),
        *_norm(f"{key}.attention.output.LayerNorm", f"{name}/norm_self"),
        *_mlp(f"{key}.intermediate.dense", f"{key}.output.dense", f"{name}/mlp"),
        *_norm(f"{key}.output.LayerNorm", f"{name}/norm_mlp"),
    ]


def _batch_norm(key: str, name: str) -> list[Rule]:
    return [
        *_norm(key, name),
        Rule(f"{key}.running_mean", (f"batch_stats/{name}/mean",)),
        Rule(f"{key}.running_var", (f"batch_stats/{name}/var",)),
        Rule(f"{key}.num_batches_tracked", (f"batch_stats/{name}/count",), dtype="int64"),
    ]


def _stem(domain: str) -> list[Rule]:
    """A PyTorch Sequential: 0 resizes, 1, 4, 7, 10 are convolutions, 2, 5, 8, 11 BatchNorms, 13 the 1x1 convolution."""
    key, name = f"expert_encoder.conv1.{domain}", f"encoder/stem_{domain}"
    convs = [Rule(f"{key}.{1 + 3 * i}.weight", (f"params/{name}/conv_{i}/kernel",), "conv") for i in range(4)]
    norms = [rule for i in range(4) for rule in _batch_norm(f"{key}.{2 + 3 * i}", f"{name}/norm_{i}")]
    return [*convs, *norms, Rule(f"{key}.13.weight", (f"params/{name}/out/kernel",), "conv")]


_RESBLOCK = "expert_encoder.transformer.resblocks.{}"
_PERCEIVER = "expert_encoder.resampler.perceiver_blocks.{}"
_EMBEDDINGS = "text_decoder.roberta.embeddings"
_LAYER = "text_decoder.roberta.encoder.layer.{}"
_HEAD = "text_decoder.lm_head"

TABLE = rules.Table(
    rules=(
        Rule(POSITIONS, ("params/encoder/position_embedding",)),
        Rule("expert_encoder.instance_embedding", ("params/encoder/instance_embedding",)),
        Rule("expert_encoder.conv1.rgb.weight", ("params/encoder/patch_embedding",), "conv"),
        *(rule for domain in _STEMS for rule in _stem(domain)),
        *_packed_attention(f"{_RESBLOCK}.0.attn", "encoder/blocks/attention"),
        *_norm(f"{_RESBLOCK}.0.ln_1", "encoder/blocks/norm_attention"),
        *_mlp(f"{_RESBLOCK}.1.adaptor.down_proj", f"{_RESBLOCK}.1.adaptor.up_proj", "encoder/blocks/adaptor"),
        *_norm(f"{_RESBLOCK}.1.adaptor_ln", "encoder/blocks/norm_adaptor"),
        *_mlp(f"{_RESBLOCK}.0.mlp.c_fc", f"{_RESBLOCK}.0.mlp.c_proj", "encoder/blocks/mlp"),
        *_norm(f"{_RESBLOCK}.0.ln_2", "encoder/blocks/norm_mlp"),
        Rule("expert_encoder.resampler.latents", ("params/encoder/resampler/latents",)),
        *_packed_attention(f"{_PERCEIVER}.attn", "encoder/resampler/blocks/attention"),
        *_norm(f"{_PERCEIVER}.ln_1", "encoder/resampler/blocks/norm_latents"),
        *_norm(f"{_PERCEIVER}.ln_2", "encoder/resampler/blocks/norm_tokens"),
        *_mlp(f"{_PERCEIVER}.mlp.c_fc", f"{_PERCEIVER}.mlp.c_proj", "encoder/resampler/blocks/mlp"),
        *_norm(f"{_PERCEIVER}.ln_ff", "encoder/resampler/blocks/norm_mlp"),
        *_norm("expert_encoder.ln_pre", "encoder/norm_pre"),
        *_norm("expert_encoder.ln_post", "encoder/norm_post"),
        Rule(f"{_EMBEDDINGS}.word_embeddings.weight", ("params/decoder/word_embedding",)),
        Rule(f"{_EMBEDDINGS}.position_embeddings.weight", ("params/decoder/position_embedding",)),
        Rule(f"{_EMBEDDINGS}.token_type_embeddings.weight", ("params/decoder/token_type_embedding",)),
        *_norm(f"{_EMBEDDINGS}.LayerNorm", "decoder/norm_embedding"),
        *_roberta_layer(f"{_LAYER}.0", "decoder/layers"),
        *_roberta_attention(f"{_LAYER}.1", "decoder/layers/cross_attention"),
        *_norm(f"{_LAYER}.1.output.LayerNorm", "decoder/layers/norm_cross"),
        *_mlp(f"{_LAYER}.2.adaptor.down_proj", f"{_LAYER}.2.adaptor.up_proj", "decoder/layers/adaptor"),
        *_norm(f"{_LAYER}.2.adaptor_ln", "decoder/layers/norm_adaptor"),
        *_roberta_layer("text_decoder.roberta.encoder.output_layer", "decoder/output_layer"),
        *_dense(f"{_HEAD}.dense", "decoder/head"),
        *_norm(f"{_HEAD}.layer_norm", "decoder/norm_head"),
        Rule(f"{_HEAD}.bias", ("params/decoder/head_bias",)),
        Rule(f"{_HEAD}.decoder.weight", ("params/decoder/word_embedding",), derived=True),
        Rule(f"{_HEAD}.decoder.bias", ("params/decoder/head_bias",), derived=True),
    ),
    constants={
        f"{_EMBEDDINGS}.position_ids": (
            "params/decoder/position_embedding",
            lambda shape: np.arange(shape[0])[None],
        )
    },
)


def shapes_of(model: Prismer) -> dict[str, Any]:
    """Returns {'params/... or batch_stats/...': shape and dtype} of a model, without computing anything."""
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    return tree.flatten({k: variables[k] for k in ("params", "batch_stats")})


def from_torch(
    state: rules.State, model: Prismer, where: str = "the checkpoint", resize: bool = False
) -> dict[str, Any]:
    """Returns {'params', 'batch_stats'} of a state dict {key: array}; the model's own 'tables' go beside them.

    Args:
      where: names the file in errors.
      resize: interpolate image positions of another resolution, as the reference's fine-tuning does.

    Raises:
      UserError: the keys or shapes do not fit the model; all of them, grouped.
    """
    shapes = shapes_of(model)
    rows = shapes["params/encoder/position_embedding"].shape[0]
    if resize and POSITIONS in state and len(state[POSITIONS]) != rows:
        side = round(rows**0.5)
        table = np.asarray(state[POSITIONS], np.float32)
        state = {**state, POSITIONS: np.asarray(resize_positions(table, (side, side)))}
    return {"batch_stats": {}} | tree.unflatten(rules.from_torch(state, TABLE, shapes, where))


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict {key: array} of {'params'[, 'batch_stats']}; gradients convert likewise."""
    flat = tree.flatten({k: variables[k] for k in ("params", "batch_stats") if k in variables})
    return rules.to_torch(flat, TABLE)
