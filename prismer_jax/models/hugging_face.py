"""config.json as transformers writes it, for the parts that families share: read with its defaults, and written.

A file of transformers' leaves out what is a class's default. Source of names and defaults: transformers 4.57.1, the
configuration_*.py of siglip, blip_2, gemma, gemma2, llama, opt and t5. None stands for what these derive from others:
heads of keys, channels of a head, the width of words, layers of a decoder.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from prismer_jax.errors import UserError, choose

Config = Mapping[str, Any]
# Of each of our fields: transformers' name and default, whose type the value has; None may be null, or a number.
Names = Mapping[str, tuple[str, Any]]
MOST_LAYERS, MOST = 1000, 1 << 31  # from which on a file is damaged
WINDOW = 4096  # of every published Gemma 2

SIGLIP: Names = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_dim": ("intermediate_size", 3072),
    "epsilon": ("layer_norm_eps", 1e-6),
}
EVA: Names = {  # Blip2VisionConfig
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "width": ("hidden_size", 1408),
    "layers": ("num_hidden_layers", 39),
    "heads": ("num_attention_heads", 16),
    "mlp_dim": ("intermediate_size", 6144),
    "epsilon": ("layer_norm_eps", 1e-6),
}
QFORMER: Names = {  # Blip2QFormerConfig
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_dim": ("intermediate_size", 3072),
    "cross_every": ("cross_attention_frequency", 2),
    "max_positions": ("max_position_embeddings", 512),
    "epsilon": ("layer_norm_eps", 1e-12),
}
_OPT: Names = {
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_dim": ("ffn_dim", 3072),
    "vocab_size": ("vocab_size", 50272),
    "max_positions": ("max_position_embeddings", 2048),
    "pre_norm": ("do_layer_norm_before", True),
    "word_width": ("word_embed_proj_dim", None),
}
_T5: Names = {
    "width": ("d_model", 512),
    "layers": ("num_layers", 6),
    "decoder_layers": ("num_decoder_layers", None),
    "heads": ("num_heads", 8),
    "head_dim": ("d_kv", 64),
    "mlp_dim": ("d_ff", 2048),
    "vocab_size": ("vocab_size", 32128),
    "buckets": ("relative_attention_num_buckets", 32),
    "max_distance": ("relative_attention_max_distance", 128),
    "epsilon": ("layer_norm_epsilon", 1e-6),
}
_LLAMA: Names = {
    "width": ("hidden_size", 4096),
    "layers": ("num_hidden_layers", 32),
    "heads": ("num_attention_heads", 32),
    "kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "mlp_dim": ("intermediate_size", 11008),
    "vocab_size": ("vocab_size", 32000),
    "max_positions": ("max_position_embeddings", 2048),
    "rope_base": ("rope_theta", 10000.0),
    "epsilon": ("rms_norm_eps", 1e-6),
}
_GEMMA: Names = {
    "width": ("hidden_size", 3072),
    "layers": ("num_hidden_layers", 28),
    "heads": ("num_attention_heads", 16),
    "kv_heads": ("num_key_value_heads", 16),
    "head_dim": ("head_dim", 256),
    "mlp_dim": ("intermediate_size", 24576),
    "vocab_size": ("vocab_size", 256000),
    "rope_base": ("rope_theta", 10000.0),
    "epsilon": ("rms_norm_eps", 1e-6),
}
_GEMMA2: Names = {
    **_GEMMA,
    "width": ("hidden_size", 2304),
    "layers": ("num_hidden_layers", 26),
    "heads": ("num_attention_heads", 8),
    "kv_heads": ("num_key_value_heads", 4),
    "mlp_dim": ("intermediate_size", 9216),
    "attention_cap": ("attn_logit_softcapping", 50.0),
    "logit_cap": ("final_logit_softcapping", 30.0),
}
TEXT: dict[str, Names] = {"gemma": _GEMMA, "gemma2": _GEMMA2, "llama": _LLAMA, "opt": _OPT, "t5": _T5}
# What a model may not be otherwise: transformers' name -> the values that are the same as here.
_ACTIVATIONS = dict(gemma="gelu_pytorch_tanh", gemma2="gelu_pytorch_tanh", llama="silu")
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    **{
        kind: {"hidden_activation": (None, act), "attention_bias": (None, False), "mlp_bias": (None, False)}
        | {"rope_scaling": (None,), "tie_word_embeddings": (None, True, *((False,) if kind == "llama" else ()))}
        for kind, act in _ACTIVATIONS.items()
    },
    "opt": {"activation_function": (None, "relu"), "enable_bias": (None, True), "tie_word_embeddings": (None, True)}
    | {"layer_norm_elementwise_affine": (None, True), "_remove_final_layer_norm": (None, False)},
    "t5": {"feed_forward_proj": ("gated-gelu",)},
}


def beside(path: pathlib.Path, kind: str = "") -> tuple[dict[str, Any], pathlib.Path]:
    """Returns the config.json in a folder of weights, or beside a file of weights, and where it is; {} for none.

    Args:
      kind: its `model_type`: a file of another is none.

    Raises:
      UserError: that in a folder cannot be read.
    """
    where = path / "config.json" if path.is_dir() else path.with_name("config.json")
    try:
        config = read(where) if where.is_file() else {}
    except UserError:
        if path.is_dir():
            raise
        config = {}  # of something else that lies beside the file
    return (config if not kind or config.get("model_type") == kind else {}), where


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns what is in a config.json.

    Raises:
      UserError: it cannot be read, or is no table of settings.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give the folder that holds it.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}). Fetch it again.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: is no table of settings. Fetch it again.")
    return config


def section(config: Config, name: str, where: pathlib.Path) -> dict[str, Any]:
    """Returns a part of a config.json, {} where it is left out; a UserError if it is no table of settings."""
    part = config.get(name)
    if part is not None and not isinstance(part, dict):
        raise UserError(f"{where}: {name} is {part!r}, which is no table of settings. Fetch the file again.")
    return part or {}


def fields(config: Config, names: Names, where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a tower that a config.json, or a part of it, means.

    Raises:
      UserError: a value is of another type, or no size.
    """
    return {ours: _value(config, *theirs, where) for ours, theirs in names.items()}


def number(config: Config, name: str, default: int, where: pathlib.Path) -> int:
    """Returns a whole number above 0 of a config.json."""
    return _value(config, name, default, where)


def _value(config: Config, name: str, default: Any, where: pathlib.Path) -> Any:
    value = config.get(name, default)
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
    elif value is None and (default is None or name.endswith("softcapping")):
        return None if default is None else 0.0
    elif isinstance(value, int | float) and not isinstance(value, bool):
        whole = not isinstance(default, float)
        most = MOST_LAYERS if name.endswith("_layers") else MOST
        if 0 < value < most and (isinstance(value, int) or (not whole and math.isfinite(value))):
            return value if whole else float(value)
    what = "neither true nor false" if isinstance(default, bool) else "no size"
    raise UserError(f"{where}: {name} is {value!r}, which is {what}. Fetch the file again.")


def check(config: Config, fixed: Mapping[str, tuple[Any, ...]], where: pathlib.Path) -> None:
    """Raises a UserError where a setting is none of those that are the same here."""
    for name, values in fixed.items():
        if config.get(name) not in values:
            valid = " or ".join(map(repr, (value for value in values if value is not None))) or "null"
            raise UserError(f"{where}: {name} is {config.get(name)!r}; only models with {valid} are converted.")


def language(config: Config, kinds: tuple[str, ...], where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a language model, and its `tower`, of a config.json or its text_config.

    Gemma 2's window is left out where it is as wide as it is in every published model, as big_vision leaves it out.

    Args:
      kinds: names of TEXT that may stand there; the first is what a file means that names none.

    Raises:
      UserError: it is of another kind, or one that is not had here.
    """
    kind = config.get("model_type", kinds[0])
    if kind not in kinds:
        raise UserError(f"{where}: holds a model of type {kind!r}; one of {', '.join(kinds)} may be used.")
    check(config, _FIXED[kind], where)
    if config.get("hidden_activation") is None and kind in _ACTIVATIONS:  # Llama's name, and Gemma 1's older one
        check(config, {"hidden_act": (None, _ACTIVATIONS[kind])}, where)
    if kind == "t5" and config.get("scale_decoder_outputs") is not False:
        # T5 1.1 alone has a head of its own, and no scale before it; transformers 5.24.0 calls that by the second and
        # says of all T5s that they are tied (configuration_t5.py).
        check(config, {"tie_word_embeddings": (False,)}, where)
    rope = section(config, "rope_parameters", where)  # of transformers 5
    check(rope, {"rope_type": (None, "default")}, where)
    tower = fields({**rope, **config} if rope else config, choose("kind", kind, TEXT), where)
    tower = {"tower": kind, **{name: value for name, value in tower.items() if value is not None}}
    if kind == "t5":
        tower.setdefault("decoder_layers", tower["layers"])
    if kind == "opt" and tower.get("word_width") == tower["width"]:
        del tower["word_width"]
    if kind == "llama":
        tower.setdefault("kv_heads", tower["heads"])
    if kind == "gemma2":
        scale = _value(config, "query_pre_attn_scalar", 256.0, where)
        tower["query_scale"] = None if scale == tower["head_dim"] else scale**-0.5  # None, lest a variant's stand there
        window = _value(config, "sliding_window", None, where) if "sliding_window" in config else WINDOW
        if window is not None and window < WINDOW:
            near = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(tower["layers"])]
            check(config, {"layer_types": (None, near)}, where)
            tower["window"] = window
        tower["post_norms"] = True
    return tower


def written(known: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Returns {transformers' name: value} of a tower's fields; what they leave out stays out."""
    return {theirs: known[ours] for ours, (theirs, _) in names.items() if known.get(ours) is not None}
