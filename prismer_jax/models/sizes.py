"""The sizes of a model whose file has no configuration: from the shapes of its arrays, as `weights.shapes` gives them.

Shapes say all but how many heads share a matrix. A published model of the same sizes says that, or whoever trained the
model does, by --config.model.vision.heads=3 of tools.convert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import linen as nn

from prismer_jax.errors import UserError
from prismer_jax.towers import opt as opt_tower
from prismer_jax.weights.shapes import Shapes

Fields = dict[str, Any]
Read = Callable[[Shapes, int | None], Fields]
LEAST = ("tiny", "small")  # what variants begin with that are no published models: others may share their shapes
# Fields that say nothing of what a trained model answers, or that --dtype and the program choose.
_TRAINING = {"initializer_range", "dropout", "branch_dropout", "keys_dtype", "remat", "dtype", "parent", "name"}
_FREE = ("image_size", "vocab_size", "max_positions", "queries")  # which do not tell models apart


def vit(shapes: Shapes, heads: int | None = None, at: str = "params/vision") -> Fields:
    """Returns the sizes of a towers.vit.ViT; {} where there is none."""
    try:
        patch, width = shapes[f"{at}/patch_embedding"][1], shapes[f"{at}/patch_embedding"][3]
        layers, _, mlp = shapes[f"{at}/blocks/mlp/up/kernel"]
        positions = shapes[f"{at}/position_embedding"][0] - (f"{at}/class_embedding" in shapes)
    except (KeyError, IndexError, ValueError):
        return {}
    fields = dict(image_size=patch * math.isqrt(max(positions, 0)), patch_size=patch, width=width)
    return _with_heads(fields | dict(layers=layers, mlp_dim=mlp), heads)


def causal_lm(shapes: Shapes, heads: int | None = None) -> Fields:
    """Returns the sizes of a towers.causal_lm.CausalLM; without `heads`, no heads and no channels of one."""
    try:
        words, width = shapes["params/language/word_embedding"]
        layers, _, mlp = shapes["params/language/blocks/gate/kernel"]
        queries, keys = (shapes[f"params/language/blocks/{part}/kernel"][2] for part in ("query", "key"))
    except (KeyError, IndexError, ValueError):
        return {}
    fields: Fields = dict(width=width, layers=layers, mlp_dim=mlp, vocab_size=words)
    if heads is None:
        return fields
    size, rest = divmod(queries, heads)
    if rest or not size or keys % size:
        return {}  # of so many heads it is not
    return fields | dict(heads=heads, kv_heads=keys // size, head_dim=size)


def opt(shapes: Shapes, heads: int | None = None) -> Fields:
    """Returns the sizes of a towers.opt.OPT."""
    try:
        words, own = shapes["params/language/word_embedding"]
        places, width = shapes["params/language/position_embedding"]
        layers, _, mlp = shapes["params/language/blocks/mlp/up/kernel"]
    except (KeyError, ValueError):
        return {}
    fields: Fields = dict(width=width, layers=layers, mlp_dim=mlp, vocab_size=words)
    fields |= dict(max_positions=places - opt_tower.FIRST, pre_norm="params/language/norm/scale" in shapes)
    return _with_heads(fields | (dict(word_width=own) if own != width else {}), heads)


def t5(shapes: Shapes, heads: int | None = None) -> Fields:
    """Returns the sizes of a towers.t5.T5, whose table of distances has a column a head."""
    try:
        words, width = shapes["params/language/word_embedding"]
        buckets, heads = shapes["params/language/encoder_bias"]
        layers, _, mlp = shapes["params/language/encoder/gate/kernel"]
        decoder_layers, _, channels = shapes["params/language/decoder/self_query/kernel"]
        fields = dict(width=width, layers=layers, decoder_layers=decoder_layers, heads=heads, buckets=buckets)
        return fields | dict(head_dim=channels // heads, mlp_dim=mlp, vocab_size=words)
    except (KeyError, ValueError, ZeroDivisionError):
        return {}


def qformer(shapes: Shapes, heads: int | None = None) -> Fields:
    """Returns the sizes of a towers.qformer.QFormer whose layers are all in one stack, as if each were like the first.

    Of these, as many as look at the image have cross-attention.
    """
    layer, reader = "params/qformer/blocks/layer_0", "params/qformer"
    try:
        queries, width = shapes[f"{reader}/query_tokens"]
        layers, _, mlp = shapes[f"{layer}/mlp_query/up/kernel"]
        every = layers // shapes[f"{layer}/cross_attention/query/kernel"][0]
    except (KeyError, IndexError, ValueError):
        return {}
    fields: Fields = dict(width=width, layers=layers, mlp_dim=mlp, queries=queries, cross_every=every)
    for name, table in (("vocab_size", "word_embedding"), ("max_positions", "position_embedding")):
        fields |= {name: shapes[f"{reader}/{table}"][0]} if f"{reader}/{table}" in shapes else {}
    return _with_heads(fields, heads)


def roberta(shapes: Shapes, heads: int | None = None) -> Fields:
    """Returns the sizes of a towers.roberta.TextDecoder."""
    at = "params/decoder"
    try:
        words, width = shapes[f"{at}/word_embedding"]
        layers, _, mlp = shapes[f"{at}/layers/mlp/up/kernel"]
        positions = shapes[f"{at}/position_embedding"][0]
    except (KeyError, ValueError):
        return {}
    fields = dict(width=width, layers=layers, mlp_dim=mlp, vocab_size=words, max_positions=positions)
    return _with_heads(fields, heads)


def _with_heads(fields: Fields, heads: int | None) -> Fields:
    """Returns the fields with `heads`, where it is known; {} where the channels cannot be shared by so many."""
    if heads is None:
        return fields
    return {} if fields["width"] % heads else fields | {"heads": heads}


def of_part(
    read: Read, shapes: Shapes, part: str, given: Mapping[str, Any], published: Iterable[Mapping[str, Any]], where: str
) -> Fields:
    """Returns the fields of a tower; {} where the file has none that `read` knows.

    Args:
      read: one of the functions above.
      part: the tower's name in the model, such as 'vision'; '' for the image encoder of a model that names none.
      given: its fields that the user gave.
      published: fields of known towers: one of the same sizes says what shapes do not.
      where: names the file in errors.

    Raises:
      UserError: it is not said how many heads there are, or there cannot be so many.
    """
    if not (least := read(shapes, None)):
        return {}
    flag, what = f"--config.model.{part}.heads".replace("..", "."), part or "image encoder"
    if "heads" in given:
        heads = given["heads"]
        is_number = isinstance(heads, int) and not isinstance(heads, bool) and heads > 0
        if not is_number or not (least := read(shapes, heads)):
            raise UserError(
                f"{where}: its {what} has not {heads!r} heads: they do not divide its channels. Give {flag}."
            )
    for variant in published:
        alike = {"head_dim": variant["width"] // variant["heads"], **variant}
        fields = read(shapes, variant["heads"])
        same = fields and all(alike.get(name, value) == value for name, value in fields.items() if name not in _FREE)
        if same and given.get("heads", variant["heads"]) == variant["heads"]:
            return {**{name: value for name, value in variant.items() if name not in _FREE}, **fields}
    if "heads" not in least:
        raise UserError(
            f"{where}: does not say how many heads its {what} has, whose width is {least['width']}: no published model "
            f"has its sizes. Give {flag}, as it was trained, or the folder of its config.json where it has one."
        )
    return least


def beyond(fields: Mapping[str, Any], known: Mapping[str, Any], tower: type[nn.Module]) -> Fields:
    """Returns those fields in which a tower differs from one of the fields `known`."""
    defaults = {name: field.default for name, field in tower.__dataclass_fields__.items()}
    return {name: value for name, value in fields.items() if known.get(name, defaults.get(name)) != value}


def nearest(
    parts: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, Mapping[str, Any]],
    usual: str,
    towers: Mapping[str, type[nn.Module]],
) -> Fields:
    """Returns {'variant': a name, part: its fields that differ from the variant's}, the arguments of models.build.

    Args:
      parts: {name of a tower: its fields}.
      variants: a family's VARIANTS; the first that differs in nothing is taken, else `usual`.
      towers: {name of a tower: its class}; one that `parts` lacks is left as the variant has it.
    """

    def differing(known: Mapping[str, Any]) -> Fields:
        differ: Fields = {}
        for part, fields in parts.items():
            same = known.get(part, {}).get("tower") == fields.get("tower")
            if own := beyond(fields, known.get(part, {}) if same else {}, towers[part]):
                differ[part] = own
        return differ

    equal = (name for name in (usual, *variants) if not differing(variants[name]))
    return {"variant": name} if (name := next(equal, None)) else {"variant": usual, **differing(variants[usual])}


def whole(model: nn.Module, part: str, tower: type[nn.Module]) -> Fields:
    """Returns all fields of a model's tower, those by default as well."""
    return {name: field.default for name, field in tower.__dataclass_fields__.items()} | dict(getattr(model, part))


def lost(model: nn.Module, back: nn.Module, towers: Mapping[str, type[nn.Module]]) -> list[str]:
    """Returns the names of the settings in which a model differs from what its config.json is read as."""
    names = []
    for part, tower in towers.items():
        before, after = (whole(one, part, tower) for one in (model, back))
        for fields in (before, after):
            if "head_dim" in fields:
                fields["head_dim"] = fields["head_dim"] or fields["width"] // fields["heads"]
        names += [f"{part}.{k}" for k in before if k not in _TRAINING and before[k] != after.get(k)]
    return names


def published(variants: Mapping[str, Mapping[str, Any]], part: str) -> list[Mapping[str, Any]]:
    """Returns the fields that the variants of published models have of a tower."""
    return [fields[part] for name, fields in variants.items() if part in fields and not name.startswith(LEAST)]
