"""Rows of tables: how PyTorch's modules name and lay out their parameters, for any architecture made of them.

Every function takes the key of a module in the state dict ('{}' in it is the layer) and its name here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prismer_jax.weights.rules import Rule


def dense(key: str, name: str) -> list[Rule]:
    """Linear."""
    return [
        Rule(f"{key}.weight", (f"params/{name}/kernel",), "dense"),
        Rule(f"{key}.bias", (f"params/{name}/bias",)),
    ]


def conv(key: str, name: str, bias: bool = True) -> list[Rule]:
    """Conv2d, also with groups."""
    kernel = Rule(f"{key}.weight", (f"params/{name}/kernel",), "conv")
    return [kernel, Rule(f"{key}.bias", (f"params/{name}/bias",))] if bias else [kernel]


def norm(key: str, name: str) -> list[Rule]:
    """LayerNorm."""
    return [
        Rule(f"{key}.weight", (f"params/{name}/scale",)),
        Rule(f"{key}.bias", (f"params/{name}/bias",)),
    ]


def batch_norm(key: str, name: str) -> list[Rule]:
    """BatchNorm2d. PyTorch counts its updates since version 0.4.1; older files lack the count."""
    return [
        *norm(key, name),
        Rule(f"{key}.running_mean", (f"batch_stats/{name}/mean",)),
        Rule(f"{key}.running_var", (f"batch_stats/{name}/var",)),
        Rule(f"{key}.num_batches_tracked", (f"batch_stats/{name}/count",), dtype="int64", default=0),
    ]


def conv_norm(conv_key: str, norm_key: str, name: str, bias: bool = False) -> list[Rule]:
    """A Conv2d and the BatchNorm2d behind it, which here are one module."""
    return [*conv(conv_key, f"{name}/conv", bias=bias), *batch_norm(norm_key, f"{name}/norm")]


def packed_attention(key: str, name: str) -> list[Rule]:
    """MultiheadAttention: query, key, value in one matrix."""
    packed = [f"params/{name}/{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{key}.in_proj_weight", tuple(f"{p}/kernel" for p in packed), "dense"),
        Rule(f"{key}.in_proj_bias", tuple(f"{p}/bias" for p in packed)),
        *dense(f"{key}.out_proj", f"{name}/out"),
    ]


def mlp(up: str, down: str, name: str) -> list[Rule]:
    """Two Linears, whose keys are given in full."""
    return [*dense(up, f"{name}/up"), *dense(down, f"{name}/down")]


def clip_block(key: str, name: str) -> list[Rule]:
    """The transformer block of CLIP's image encoder (openai/CLIP, clip/model.py: ResidualAttentionBlock)."""
    return [
        *packed_attention(f"{key}.attn", f"{name}/attention"),
        *norm(f"{key}.ln_1", f"{name}/norm_attention"),
        *mlp(f"{key}.mlp.c_fc", f"{key}.mlp.c_proj", f"{name}/mlp"),
        *norm(f"{key}.ln_2", f"{name}/norm_mlp"),
    ]


def roberta_attention(key: str, name: str) -> list[Rule]:
    """Attention and its output of transformers' RobertaAttention, without the norm."""
    return [
        *dense(f"{key}.self.query", f"{name}/query"),
        *dense(f"{key}.self.key", f"{name}/key"),
        *dense(f"{key}.self.value", f"{name}/value"),
        *dense(f"{key}.output.dense", f"{name}/out"),
    ]


def roberta_layer(key: str, name: str) -> list[Rule]:
    """transformers' RobertaLayer."""
    return [
        *roberta_attention(f"{key}.attention", f"{name}/self_attention"),
        *norm(f"{key}.attention.output.LayerNorm", f"{name}/norm_self"),
        *mlp(f"{key}.intermediate.dense", f"{key}.output.dense", f"{name}/mlp"),
        *norm(f"{key}.output.LayerNorm", f"{name}/norm_mlp"),
    ]


def roberta_embeddings(key: str, name: str) -> list[Rule]:
    """transformers' RobertaEmbeddings."""
    return [
        Rule(f"{key}.word_embeddings.weight", (f"params/{name}/word_embedding",)),
        Rule(f"{key}.position_embeddings.weight", (f"params/{name}/position_embedding",)),
        Rule(f"{key}.token_type_embeddings.weight", (f"params/{name}/token_type_embedding",)),
        *norm(f"{key}.LayerNorm", f"{name}/norm_embedding"),
    ]


def position_ids(key: str, name: str) -> dict[str, tuple[str, Callable[[tuple[int, ...]], np.ndarray]]]:
    """The numbers of RoBERTa's positions, which transformers saved until version 4.30: a table's `constants`."""
    return {f"{key}.position_ids": (f"params/{name}/position_embedding", lambda shape: np.arange(shape[0])[None])}


def roberta_head(key: str, name: str) -> list[Rule]:
    """transformers' RobertaLMHead, whose matrix is the word embedding and whose bias is under two keys."""
    return [
        *dense(f"{key}.dense", f"{name}/head"),
        *norm(f"{key}.layer_norm", f"{name}/norm_head"),
        Rule(f"{key}.bias", (f"params/{name}/head_bias",)),
        Rule(f"{key}.decoder.weight", (f"params/{name}/word_embedding",), derived=True),
        Rule(f"{key}.decoder.bias", (f"params/{name}/head_bias",), derived=True),
    ]


# Files of before 2019 name the parameters of a LayerNorm after TensorFlow's (transformers, convert_tf_checkpoint).
OLD_NORMS = ((r"\bgamma$", "weight"), (r"\bbeta$", "bias"))


def kernel(key: str, name: str) -> Rule:
    """Linear without bias."""
    return Rule(f"{key}.weight", (f"params/{name}/kernel",), "dense")


def siglip(key: str, name: str) -> list[Rule]:
    """The image encoder of SigLIP as towers.vit.ViT, without its pooling head (transformers, SiglipVisionModel)."""
    block = f"{key}.encoder.layers.{{}}"
    return [
        Rule(f"{key}.embeddings.position_embedding.weight", (f"params/{name}/position_embedding",)),
        Rule(f"{key}.embeddings.patch_embedding.weight", (f"params/{name}/patch_embedding",), "conv"),
        Rule(f"{key}.embeddings.patch_embedding.bias", (f"params/{name}/patch_bias",)),
        *norm(f"{block}.layer_norm1", f"{name}/blocks/norm_attention"),
        *(
            rule
            for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
            for rule in dense(f"{block}.self_attn.{theirs}", f"{name}/blocks/attention/{ours}")
        ),
        *norm(f"{block}.layer_norm2", f"{name}/blocks/norm_mlp"),
        *mlp(f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{name}/blocks/mlp"),
        *norm(f"{key}.post_layernorm", f"{name}/norm"),
    ]


def dinov2(name: str) -> list[Rule]:
    """DINOv2 as towers.vit.ViT with a class token and layer scales (keys of transformers' Dinov2Model)."""
    embeddings, block = "embeddings", "encoder.layer.{}"
    projections = (("attention.query", "query"), ("attention.key", "key"), ("attention.value", "value"))
    return [
        Rule(f"{embeddings}.cls_token", (f"params/{name}/class_embedding",), "token"),
        Rule(f"{embeddings}.position_embeddings", (f"params/{name}/position_embedding",), "leading"),
        Rule(f"{embeddings}.patch_embeddings.projection.weight", (f"params/{name}/patch_embedding",), "conv"),
        Rule(f"{embeddings}.patch_embeddings.projection.bias", (f"params/{name}/patch_bias",)),
        *norm(f"{block}.norm1", f"{name}/blocks/norm_attention"),
        *(
            rule
            for theirs, ours in (*projections, ("output.dense", "out"))
            for rule in dense(f"{block}.attention.{theirs}", f"{name}/blocks/attention/{ours}")
        ),
        Rule(f"{block}.layer_scale1.lambda1", (f"params/{name}/blocks/scale_attention",)),
        *norm(f"{block}.norm2", f"{name}/blocks/norm_mlp"),
        *mlp(f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{name}/blocks/mlp"),
        Rule(f"{block}.layer_scale2.lambda1", (f"params/{name}/blocks/scale_mlp",)),
        *norm("layernorm", f"{name}/norm"),
    ]


def llama(key: str, name: str) -> list[Rule]:
    """A Llama as towers.causal_lm.CausalLM, without its head (transformers, LlamaModel)."""
    layer = f"{key}.layers.{{}}"
    projections = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "out"))
    return [
        Rule(f"{key}.embed_tokens.weight", (f"params/{name}/word_embedding",)),
        Rule(f"{layer}.input_layernorm.weight", (f"params/{name}/blocks/norm_attention/scale",)),
        *(kernel(f"{layer}.self_attn.{theirs}", f"{name}/blocks/{ours}") for theirs, ours in projections),
        Rule(f"{layer}.post_attention_layernorm.weight", (f"params/{name}/blocks/norm_mlp/scale",)),
        *(kernel(f"{layer}.mlp.{part}_proj", f"{name}/blocks/{part}") for part in ("gate", "up", "down")),
        Rule(f"{key}.norm.weight", (f"params/{name}/norm/scale",)),
    ]


def t5(prefix: str, name: str) -> list[Rule]:
    """T5 1.1 or FlanT5 as towers.t5.T5 (transformers, T5ForConditionalGeneration); `prefix` stands before every key.

    One table of words is under three keys.
    """
    attention = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
    rules = [Rule(f"{prefix}shared.weight", (f"params/{name}/word_embedding",))]
    for stack, parts in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        layer, block = f"{prefix}{stack}.block.{{}}.layer", f"{name}/{stack}"
        first = f"{prefix}{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        mlp, number = f"{layer}.{len(parts)}", len(parts)
        rules += [
            Rule(f"{prefix}{stack}.embed_tokens.weight", (f"params/{name}/word_embedding",), derived=True),
            Rule(first, (f"params/{name}/{stack}_bias",)),
            *(
                kernel(f"{layer}.{i}.{part}.{theirs}", f"{block}/{kind}_{ours}")
                for i, (part, kind) in enumerate(zip(parts, ("self", "cross"), strict=False))
                for theirs, ours in attention
            ),
            *(
                Rule(f"{layer}.{i}.layer_norm.weight", (f"params/{block}/norm_{kind}/scale",))
                for i, kind in enumerate([*("self", "cross")[:number], "mlp"])
            ),
            *(
                kernel(f"{mlp}.DenseReluDense.{theirs}", f"{block}/{ours}")
                for theirs, ours in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))
            ),
            Rule(f"{prefix}{stack}.final_layer_norm.weight", (f"params/{name}/{stack}_norm/scale",)),
        ]
    return [*rules, kernel(f"{prefix}lm_head", f"{name}/head")]


def opt(key: str, name: str) -> list[Rule]:
    """An OPT as towers.opt.OPT (transformers, OPTForCausalLM); of the 350M's layers, `project` has the words' width."""
    decoder, blocks = f"{key}.model.decoder", f"{name}/blocks"
    layer = f"{decoder}.layers.{{}}"
    projections = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
    return [
        Rule(f"{decoder}.embed_tokens.weight", (f"params/{name}/word_embedding",)),
        Rule(f"{decoder}.embed_positions.weight", (f"params/{name}/position_embedding",)),
        kernel(f"{decoder}.project_in", f"{name}/widen"),
        kernel(f"{decoder}.project_out", f"{name}/narrow"),
        *norm(f"{decoder}.final_layer_norm", f"{name}/norm"),
        *(
            rule
            for theirs, ours in projections
            for rule in dense(f"{layer}.self_attn.{theirs}", f"{blocks}/attention/{ours}")
        ),
        *norm(f"{layer}.self_attn_layer_norm", f"{blocks}/norm_attention"),
        *mlp(f"{layer}.fc1", f"{layer}.fc2", f"{blocks}/mlp"),
        *norm(f"{layer}.final_layer_norm", f"{blocks}/norm_mlp"),
        Rule(f"{key}.lm_head.weight", (f"params/{name}/word_embedding",), derived=True),
    ]
