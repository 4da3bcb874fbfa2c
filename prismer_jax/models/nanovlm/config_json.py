"""config.json of nanoVLM's three generations, and of the models that it starts from, as the fields of a model.

Or, of a file that has none, the shapes of its arrays.
"""

from __future__ import annotations

import inspect
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from prismer_jax import registry
from prismer_jax.errors import UserError
from prismer_jax.models import hugging_face, sizes
from prismer_jax.models.nanovlm.model import VARIANTS, build
from prismer_jax.pp import chat
from prismer_jax.pp.tiles import tiles
from prismer_jax.towers.causal_lm import CausalLM
from prismer_jax.towers.vit import ViT
from prismer_jax.weights.shapes import Shapes

# nanoVLM's name of each of our fields (huggingface/nanoVLM, models/config.py, the same in all generations).
VISION = {
    "image_size": "vit_img_size",
    "patch_size": "vit_patch_size",
    "width": "vit_hidden_dim",
    "layers": "vit_n_blocks",
    "heads": "vit_n_heads",
    "mlp_dim": "vit_inter_dim",
    "epsilon": "vit_ln_eps",
    "dropout": "vit_dropout",
}
LANGUAGE = {
    "width": "lm_hidden_dim",
    "layers": "lm_n_blocks",
    "heads": "lm_n_heads",
    "kv_heads": "lm_n_kv_heads",
    "mlp_dim": "lm_inter_dim",
    "vocab_size": "lm_vocab_size",
    "max_positions": "lm_max_position_embeddings",
    "rope_base": "lm_re_base",
    "epsilon": "lm_rms_eps",
    "dropout": "lm_dropout",
}
_COMMON = {
    *VISION.values(),
    *LANGUAGE.values(),
    *("vit_cls_flag", "vit_model_type", "lm_attn_scaling", "lm_max_length"),
    *("lm_use_tokens", "lm_tie_weights", "lm_model_type", "lm_tokenizer", "mp_pixel_shuffle_factor"),
    *("vlm_load_backbone_weights", "vlm_checkpoint_path"),
}
_EXTENDED = {"lm_base_vocab_size", "extra_token_amount", "mp_image_token_length", "vlm_extra_tokens", "hf_repo_name"}
# The keys that each generation's VLMConfig takes: it refuses any other.
GENERATIONS = {
    "v0.1": _COMMON | {"lm_eos_token_id"},
    "v0.2": _COMMON | _EXTENDED | {"lm_eos_token_id"},
    "head": _COMMON | _EXTENDED | {"lm_chat_template", "max_img_size", "resize_to_max_side_len"},
}
# What pp.chat writes, in Jinja.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# HEAD got these one after the other: files that were written before lack them.
_LATE = {"resize_to_max_side_len", "lm_chat_template", "max_img_size", "hf_repo_name"}


def generation_of(config: Mapping[str, Any], where: pathlib.Path = pathlib.Path("config.json")) -> str:
    """Returns which generation of nanoVLM wrote a config.json, a name of GENERATIONS.

    Raises:
      UserError: it is none's: names the first keys that are missing or unknown.
    """
    for name, keys in GENERATIONS.items():
        optional = {"vlm_extra_tokens", *_LATE} if name == "head" else set()
        if keys - optional <= config.keys() <= keys:
            return name
    nearest = min(GENERATIONS, key=lambda name: len(GENERATIONS[name] ^ config.keys()))
    missing, unknown = GENERATIONS[nearest] - config.keys(), config.keys() - GENERATIONS[nearest]
    said = [f"{what} {', '.join(sorted(keys)[:6])}" for what, keys in (("lacks", missing), ("has", unknown)) if keys]
    raise UserError(f"{where}: no config.json of nanoVLM that is known; beside {nearest}'s it {' and '.join(said)}.")


def fields_of(config: Mapping[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of NanoVLM that a config.json of nanoVLM means.

    Raises:
      UserError: it is of an unknown generation, or of a model that nanoVLM could not train either.
    """
    generation_of(config, where)
    for key, value in (("vit_cls_flag", False), ("lm_tie_weights", True), ("lm_use_tokens", False)):
        if config[key] != value:
            raise UserError(f"{where}: {key} is {config[key]}; only models with {value} are converted.")
    for key in ("mp_pixel_shuffle_factor", *VISION.values(), *LANGUAGE.values()):
        number = config[key] if isinstance(config[key], int | float) and not isinstance(config[key], bool) else -1
        most = hugging_face.MOST_LAYERS if key.endswith("n_blocks") else hugging_face.MOST
        if not (0 < number < most or (number == 0 and key.endswith("dropout"))):
            raise UserError(f"{where}: {key} is {config[key]!r}, which is no size. Fetch the file again.")
    vision = {ours: config[theirs] for ours, theirs in VISION.items()}
    language = {ours: config[theirs] for ours, theirs in LANGUAGE.items()}
    language["rope_base"] = float(language["rope_base"])
    first = config.get("lm_base_vocab_size")  # the extra tokens are numbered from here on, the image's the first
    fields = dict(vision=vision, language=language, shuffle=config["mp_pixel_shuffle_factor"], image_token=first)
    return fields


def fields_by_shapes(known: Shapes, given: Mapping[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of NanoVLM that the shapes of a file's arrays say.

    Args:
      known: of weights.shapes.
      given: the fields that the user gave.
      where: names the file in errors.

    Raises:
      UserError: it is no nanoVLM, or nothing says how many heads it has or which id the image's token; names the flag.
    """
    fields: dict[str, Any] = {}
    for part, read in (("vision", sizes.vit), ("language", sizes.causal_lm)):
        published = sizes.published(VARIANTS, part)
        fields[part] = sizes.of_part(read, known, part, given.get(part, {}), published, str(where))
    projector = known.get("params/projector/kernel", ())
    if not all(fields.values()) or len(projector) != 2:
        raise UserError(f"{where}: is no nanoVLM: it lacks towers under its names. Give what save_pretrained wrote.")
    fields["shuffle"] = math.isqrt(projector[0] // max(1, fields["vision"]["width"]))
    own = fields["language"]["vocab_size"], fields["shuffle"]
    variants = [variant for name, variant in VARIANTS.items() if not name.startswith(sizes.LEAST)]
    alike = [variant for variant in variants if (variant["language"]["vocab_size"], variant["shuffle"]) == own]
    if "image_token" not in given and not alike:
        raise UserError(
            f"{where}: does not say which word is the image's token. Give --config.model.image_token, its id, or None "
            "where images stand in front of texts, or the folder of its config.json."
        )
    return {"image_token": alike[0].get("image_token") if alike else None, **fields}


def sizes_of(model: Any) -> dict[str, Any]:
    """Returns what a config.json says of a NanoVLM's weights."""
    vision = {theirs: model.vision.get(ours, getattr(ViT, ours, None)) for ours, theirs in VISION.items()}
    language = {theirs: model.language.get(ours, getattr(CausalLM, ours, None)) for ours, theirs in LANGUAGE.items()}
    return {**vision, **language, "mp_pixel_shuffle_factor": model.shuffle}


def of(model: Any, tasks: Mapping[str, Any] = FrozenDict()) -> dict[str, Any]:
    """Returns the config.json of a NanoVLM that was not converted from one.

    It is HEAD's; v0.1's where images go in front, and v0.2's where there are no words for tiles, without which HEAD's
    code reads no photo. What says nothing of the model, such as the names of repositories, are nanoVLM's own defaults.

    Args:
      tasks: how the model is asked; the size of its photos is that of the op `tiles` there.
    """
    own = sizes_of(model)
    common = {
        **own,
        "lm_re_base": int(own["lm_re_base"]),
        "vit_cls_flag": False,
        "vit_model_type": "google/siglip2-base-patch16-512",
        "lm_attn_scaling": 1.0,
        "lm_max_length": 4096 if model.image_token is not None else 128 - model.image_tokens,
        "lm_use_tokens": False,
        "lm_tie_weights": True,
        "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "vlm_load_backbone_weights": True,
        "vlm_checkpoint_path": "checkpoints",
    }
    if model.image_token is None:
        return common | {"lm_eos_token_id": 0}
    extra = chat.EXTRA_TOKENS[: model.vocab_size - model.image_token]
    keys = ("image_token", "global_image_token", *(f"r{i}c{j}" for i in range(1, 9) for j in range(1, 9)))
    common |= {
        "lm_base_vocab_size": model.image_token,
        "extra_token_amount": len(extra),
        "mp_image_token_length": model.image_tokens,
        "vlm_extra_tokens": dict(zip(keys, extra, strict=False)),
        "hf_repo_name": "nanoVLM",
    }
    if len(extra) == 1:
        return common | {"lm_max_length": 512, "lm_eos_token_id": 0}
    return common | {"lm_chat_template": CHAT_TEMPLATE, **_photos(model, tasks)}


def _photos(model: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how the original's generate.py is to stretch photos: as `tasks` do, or as those of a new model."""
    for task in tasks.values():
        for name, args, options in registry.parse(task["pp"]):
            if name == tiles.__name__:
                look = inspect.signature(tiles).bind(*args, **options)
                look.apply_defaults()
                longest = look.arguments["max_side"] or look.arguments["size"]
                return {"max_img_size": longest, "resize_to_max_side_len": look.arguments["enlarge"]}
    return {"max_img_size": 4 * model.image_size, "resize_to_max_side_len": False}


def lost(model: Any) -> list[str]:
    """Returns the names of a model's settings that its config.json does not say, such as a class token."""
    back = build(**fields_of(of(model), pathlib.Path("config.json")))
    return sizes.lost(model, back, {"vision": ViT, "language": CausalLM})


def vision_fields(config: Mapping[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a ViT that a SigLIP's config.json means.

    Raises:
      UserError: it is no SigLIP's, or a value is no size.
    """
    config = hugging_face.section(config, "vision_config", where) or config
    hugging_face.check(config, {"hidden_act": (None, "gelu_pytorch_tanh")}, where)
    return hugging_face.fields(config, hugging_face.SIGLIP, where)


def language_fields(config: Mapping[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a CausalLM that a Llama's config.json means.

    Raises:
      UserError: it is no Llama with tied embeddings, or one that is computed in another way.
    """
    if not config.get("tie_word_embeddings", False):
        raise UserError(f"{where}: its embeddings are not tied to its head; only SmolLM2-like models are.")
    fields = hugging_face.language(config, ("llama",), where)
    hugging_face.check(config, {"head_dim": (None, fields["width"] // fields["heads"])}, where)
    return {name: value for name, value in fields.items() if name not in ("tower", "head_dim")}
