"""BLIP-2's golden cases of models and files."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from prismer_jax import decode, models, tree
from prismer_jax.losses import Costs
from prismer_jax.models import conversion
from prismer_jax.models.blip2 import RESIZE, losses
from prismer_jax.models.blip2.base import DEVIATION, MEAN
from prismer_jax.models.blip2.stage1 import Negatives
from prismer_jax.models.blip2.table import (
    LANGUAGE,
    UNUSED,
    VISION,
    named_by_hugging_face,
    of_hugging_face,
    to_hugging_face,
)
from prismer_jax.weights import rules

from .case import Case, Mismatch, Outputs, check_shapes
from .nanovlm import columns

BEAMS = {  # of blip2_opt_tiny, with num_beams=5 and at most 30 tokens
    "beam": {},
    "beam_min8": dict(min_new=8),
    "beam_rep1.5": dict(repetition_penalty=1.5),
    "beam_lp-1": dict(length_penalty=-1.0),
    "beam_lp2": dict(length_penalty=2.0),
    "beam_ncap3": dict(num_return=3),
}


def vision_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a ViT that a case's config means."""
    names = dict(image_size="img_size", patch_size="patch_size", width="embed_dim", layers="depth", heads="num_heads")
    width = int(config["embed_dim"] * config["mlp_ratio"])
    return {ours: config[theirs] for ours, theirs in names.items()} | dict(mlp_dim=width)


def model_of(case: Case) -> Any:
    """Returns the model of a tiny case."""
    config, q = case.config, case.config["qformer"]
    reader = dict(width=q["hidden_size"], layers=q["num_hidden_layers"], heads=q["num_attention_heads"])
    reader |= dict(mlp_dim=q["intermediate_size"], queries=q["query_length"], cross_every=q["cross_attention_freq"])
    fields = dict(vision=vision_of(config["vit"]), qformer=reader | dict(max_positions=q["max_position_embeddings"]))
    if "t5" in config:
        names = dict(vocab_size="vocab_size", width="d_model", mlp_dim="d_ff", head_dim="d_kv", heads="num_heads")
        names |= dict(layers="num_layers", decoder_layers="num_decoder_layers")
        fields["language"] = {ours: config["t5"][theirs] for ours, theirs in names.items()}
        return models.build("blip2", variant="tiny_t5", **fields)
    if "opt" not in config:
        fields["qformer"]["vocab_size"] = q["vocab_size_after_resize"]
        return models.build("blip2", variant="tiny_stage1", embed_dim=config["embed_dim"], **fields)
    names = dict(vocab_size="vocab_size", width="hidden_size", mlp_dim="ffn_dim", layers="num_hidden_layers")
    names |= dict(heads="num_attention_heads", max_positions="max_position_embeddings")
    fields["language"] = {ours: config["opt"][theirs] for ours, theirs in names.items()}
    return models.build("blip2", variant="tiny", **fields)


def variables_of(case: Case, model: Any) -> dict[str, Any]:
    table = conversion.table_of("blip2", model)
    return jax.tree.map(jnp.asarray, conversion.from_torch(case.state(), model, table, case.name))


def images(case: Case) -> jax.Array:
    """Returns images whose normalisation is what the case has."""
    return jnp.asarray((rearrange(case["image"], "b c h w -> b h w c") * DEVIATION + MEAN) * 255)


def texts(ids: np.ndarray, mask: np.ndarray) -> dict[str, jax.Array]:
    ids = jnp.asarray(ids, jnp.int32)
    return {
        "text": ids,
        "mask_input": jnp.asarray(mask > 0),
        "mask_ar": jnp.ones_like(ids),
        "segment": jnp.zeros_like(ids),
    }


def mean(costs: Costs, name: str = "loss") -> jax.Array:
    cost, weight = costs[name]
    return cost.sum() / weight.sum()


def gradients(case: Case, model: Any, grads: Any) -> Outputs:
    for key, array in conversion.to_torch({"params": grads}, conversion.table_of("blip2", model)).items():
        yield f"out/grad/{key}", array


@functools.partial(jax.jit, static_argnums=0)
def apply(model: Any, variables: Any, batch: Any) -> Any:
    """Returns (hidden states, projected queries, logits, attended columns, intermediates)."""

    def read(model: Any, batch: Any) -> Any:
        encoded = model.encode(batch)
        hidden, _, columns = model.read(encoded, batch)
        return hidden, encoded, model.first_logits(hidden), columns.real

    result, state = model.apply(variables, batch, method=read, mutable=["intermediates"])
    return *result, tree.flatten(state["intermediates"])


def image_side(projected: jax.Array, taps: dict[str, jax.Array]) -> Outputs:
    """Yields what the image encoder and the Q-Former make of the images, from `apply`."""
    yield "out/image_embeds", taps["image_tokens/0"]
    yield "out/query_output", taps["queried/0"]
    yield "out/projected", projected
    yield "tap/vit_patch_embed", taps["vision/patches/0"]
    yield "tap/vit_block0", taps["vision/blocks/after_mlp/0"][0]
    yield "tap/vit_out", taps["vision/blocks/after_mlp/0"][-1]
    # The first layer's output of attention, before residual and norm, is not kept here; the layers' are.
    yield "tap/qformer_layer0", taps["qformer/blocks/layer_0/after_query/0"][0][:, 0]
    yield "tap/qformer_layer0_crossattn", taps["qformer/blocks/layer_0/after_cross/0"][0][:, 0]
    yield "tap/qformer_layer1", taps["qformer/blocks/layer_1/after_query/0"][0][:, 0]


def stage2(case: Case) -> Outputs:
    """Runs the model with OPT: losses, gradients, and beams by all rules of length."""
    model = model_of(case)
    variables = variables_of(case, model)
    ids, mask = case.arrays["int/train_ids"], case.arrays["int/train_mask"]
    batch = {"image": images(case), **texts(ids, mask)}
    _, projected, logits, real, taps = apply(model, variables, batch)
    yield "int/attention_mask", real.astype(np.int32)
    yield from image_side(projected, taps)
    yield "out/logits", logits
    for layer in range(2):
        yield f"tap/opt_layer{layer}", taps["language/blocks/after_mlp/0"][layer][:, 0]

    def loss(params: Any, weights: jax.Array) -> jax.Array:
        forward = functools.partial(model.apply, {"params": params})
        return mean(losses.stage2(forward, batch | {"mask_loss": weights}))

    count = case.arrays["int/prompt_ids"].shape[1]
    weights = mask * (np.arange(mask.shape[1]) >= count)
    labels = np.where(weights, ids, -100)
    queries = np.full((len(ids), model.qformer["queries"]), -100)
    yield "int/labels", np.concatenate([queries, labels], axis=1).astype(np.int32)
    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"], jnp.asarray(weights, jnp.float32))
    yield "out/loss", value
    yield "out/loss_without_prompt_masking", jax.jit(loss)(variables["params"], jnp.asarray(mask, jnp.float32))
    yield from gradients(case, model, grads)
    yield from captions(case, model, variables, batch["image"])


def captions(case: Case, model: Any, variables: Any, image: jax.Array) -> Outputs:
    eos, pad = case.config["eos_newline"], case.config["opt"]["pad_token_id"]
    prompt = np.repeat(case.arrays["int/prompt_ids"], len(image), axis=0)
    batch = {"image": image, **texts(prompt, np.ones_like(prompt))}
    generate = functools.partial(decode.generate, model, variables, eos=eos, pad=pad)
    fronts = {"v426": ("lavis_4.26", prompt), "head": ("lavis", prompt[:, :1]), "newest": ("new", prompt[:, :0])}
    for version, (length, front) in fronts.items():
        for name, settings in {**BEAMS, "greedy": dict(method="greedy")}.items():
            if f"out/{version}_{name}_ids" not in case.arrays:
                continue
            settings = dict(method="beam", num_beams=5, min_new=1) | settings if name != "greedy" else settings
            tokens, scores = generate(batch, max_new=30, length=length, **settings)
            yield f"out/{version}_{name}_ids", shown(tokens, front, case.arrays[f"out/{version}_{name}_ids"])
            yield f"out/{version}_{name}_scores", scores.reshape(-1)
    asked = texts(case.arrays["int/vqa_ids"], case.arrays["int/vqa_mask"])
    settings = dict(num_beams=5, length_penalty=0.0, max_new=11, min_new=1, length="lavis")
    tokens, scores = generate({"image": image, **asked}, **settings)
    yield "out/head_vqa_ids", shown(tokens, prompt[:, :1], case.arrays["out/head_vqa_ids"])
    yield "out/head_vqa_scores", scores.reshape(-1)


def shown(tokens: jax.Array, front: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns sequences as the reference does: behind `front`, as many columns as the longest has."""
    rows = np.asarray(tokens).reshape(-1, tokens.shape[-1])
    front = np.repeat(front, len(rows) // len(front), axis=0)
    return np.concatenate([front, rows], axis=1)[:, : theirs.shape[1]].astype(np.int32)


def stage1(case: Case) -> Outputs:
    """Runs the three losses with given negatives, their gradients, features, matching and captions of the Q-Former."""
    model = model_of(case)
    variables = variables_of(case, model)
    batch = {"image": images(case), **texts(case.arrays["int/text_ids"], case.arrays["int/text_mask"])}
    text = columns(case.arrays["int/text_mask"], 1, case.manifest["tolerance"])  # positions of padding are others
    fixed = Negatives(*(jnp.asarray(case.arrays[f"int/neg_{name}"]) for name in ("image_for_text", "text_for_image")))

    def costs(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        outputs = {}

        def forward(batch: Any, **settings: Any) -> Any:
            (out), state = model.apply(
                {"params": params}, batch, negatives=fixed, mutable=["intermediates"], **settings
            )
            outputs.update(out, taps=tree.flatten(state["intermediates"]))
            return out

        costs_of = losses.stage1(forward, batch, gather="reference")  # as its step differentiates, on one device too
        return mean(costs_of), ({name: mean(costs_of, name) for name in ("itc", "itm", "itg")}, outputs)

    step = jax.jit(jax.value_and_grad(costs, has_aux=True))
    (loss, (parts, out)), grads = step(variables["params"], batch)
    yield "out/loss", loss
    for name, ours in (("loss_itc", "itc"), ("loss_itm", "itm"), ("loss_lm", "itg")):
        yield f"out/{name}", parts[ours]
    yield "out/itm_logits", out["match"].reshape(-1, 2)
    own, other = (out["taps"][f"match/{number}"] for number in range(2))
    yield "tap/itm_logits_per_query", jnp.concatenate([own[:, 0], other[:, 0], own[:, 1]])
    yield "out/itg_logits", out["logits"], text
    yield from gradients(case, model, grads)
    for name in ("i2t", "t2i"):
        yield f"tap/sim_{name}", out[name]
        yield f"tap/multinomial_weights_{name}", jax.nn.softmax(jnp.where(out["same"], -10_000.0, out[name]))
    _, (parts, _) = jax.jit(costs)(variables["params"], batch | {"image_id": jnp.asarray(case.arrays["int/image_id"])})
    yield "out/loss_itc_with_image_id", parts["itc"]

    def features(model: Any, batch: Any) -> Any:
        tokens = model.image_tokens(batch)
        hidden, keys = model.queried(tokens)
        states, unit = model.read_text(batch)
        both, scores = model.matched(batch["text"][:, None], batch["mask_input"][:, None], tokens)
        return tokens, hidden, keys, model.image_embeddings(hidden), states, unit, both[:, 0], scores[:, 0]

    tokens, hidden, keys, unit, states, text_unit, both, scores = jax.jit(
        functools.partial(model.apply, method=features)
    )(variables, batch)
    yield "tap/image_embeds_vit", tokens
    yield "tap/query_past_key_layer1", rearrange(keys["layer_1"]["query"]["k"][0][:, 0], "b q h d -> b h q d")
    yield "out/image_embeds", hidden
    yield "out/image_embeds_proj", unit
    yield "out/text_embeds", states, text
    yield "out/text_embeds_proj", text_unit, text
    yield "out/multimodal_embeds", both
    yield "out/itm_score", scores.mean(1)[:, 1]
    begin = jnp.full((len(tokens), 1), model.begin)
    prompt = {"image": batch["image"], **texts(begin, np.ones(begin.shape))}
    for name, settings in (("greedy", dict(method="greedy")), ("beam3", dict(num_beams=3))):
        ids, _ = decode.generate(model, variables, prompt, eos=2, pad=0, max_len=20, min_len=5, **settings)
        yield f"out/itg_{name}_ids", shown(ids, np.asarray(begin), case.arrays[f"out/itg_{name}_ids"])


def positions(case: Case) -> Outputs:
    """Interpolates positions to other grids; the class token's stays."""
    resize = RESIZE["params/vision/position_embedding"]
    for name in case.inputs("pos_(.*)"):
        shape = case.arrays[f"out/pos_{name}"].shape[1:]
        yield f"out/pos_{name}", resize(jnp.asarray(case[f"pos_{name}"][0]), shape)[None]


def vision_keys(case: Case) -> Outputs:
    """Compares the keys of eva_vit_g.pth that are used; those that are not are ignored when it is converted."""
    model = models.build("blip2", variant="pretrained")
    if model.vision["layers"] != case.config["depth_used"] or vision_of(case.config | {"depth": 39}) != {
        name: model.vision[name] for name in vision_of(case.config)
    }:
        raise Mismatch("other sizes")
    theirs = {key: case.shapes[key] for key in case.manifest["used_keys"]}
    shapes = {name: leaf for name, leaf in conversion.shapes_of(model).items() if name.startswith("params/vision/")}
    check_shapes(
        rules.key_shapes(rules.Table(VISION), shapes), {f"visual_encoder.{key}": s for key, s in theirs.items()}
    )
    unused = [key for key in case.manifest["tensors"] if key not in theirs] + list(case.manifest["maybe_unused_keys"])
    if left := [key for key in unused if not re.fullmatch(UNUSED, key)]:
        raise Mismatch(f"would be refused: {rules.grouped(left)}")
    yield from ()


def lavis_keys(case: Case) -> Outputs:
    """Compares the keys of LAVIS's files, which hold what was trained and may hold tied names of what was not."""
    variant = (
        re.fullmatch("blip2_(.*)_manifest", case.name)[1].replace("opt2_7b", "opt2.7b").replace("opt6_7b", "opt6.7b")
    )
    model = models.build("blip2", variant=variant)
    shapes = conversion.shapes_of(model)
    ours = rules.key_shapes(conversion.table_of("blip2", model), shapes)
    optional = {key: tuple(entry["shape"]) for key, entry in case.manifest["optional_tensors"].items()}
    if wrong := [key for key, shape in optional.items() if ours.get(key) != shape]:
        raise Mismatch(f"optional keys differ: {rules.grouped(wrong)}")
    frozen = FROZEN if "vit" in case.config and case.config["vit"]["img_size"] == 224 else FROZEN[1:]
    check_shapes({key: shape for key, shape in ours.items() if not key.startswith(frozen)}, case.shapes)
    yield from ()


FROZEN = ("visual_encoder.", "opt_model.", "t5_model.", "llm_model.")


def hugging_face_keys(case: Case) -> Outputs:
    """Compares the keys of Hugging Face's repositories, and which of LAVIS's each is, both ways."""
    name = case.name.removeprefix("blip2_hf_").removesuffix("_manifest").replace("opt2_7b", "opt2.7b")
    model = models.build("blip2", variant=f"pretrained_{name}")
    ours = rules.key_shapes(conversion.table_of("blip2", model), conversion.shapes_of(model))
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in ours.items()}
    check_shapes({key: array.shape for key, array in to_hugging_face(state).items()}, case.shapes)
    for key, lavis in case.manifest["lavis_key"].items():
        for one in lavis if isinstance(lavis, list) else [lavis]:
            if one != "zeros" and key != named_by_hugging_face(one).replace("q_bias", "qkv.bias").replace(
                "v_bias", "qkv.bias"
            ):
                raise Mismatch(f"{one} is called {named_by_hugging_face(one)} instead of {key}")
    prefix = LANGUAGE[model.language["tower"]][0]
    back = of_hugging_face({key: np.broadcast_to(np.float32(0), shape) for key, shape in case.shapes.items()}, prefix)
    check_shapes(
        {key: array.shape for key, array in back.items()},
        {k: v for k, v in ours.items() if not k.endswith(".position_ids")},
    )
    yield from ()
