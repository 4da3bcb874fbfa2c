"""nanoVLM's golden cases of models, training and files; those of data are in nanovlm_data.py."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import linen as nn

from prismer_jax import losses, models, optim, tree
from prismer_jax.decode.greedy import greedy
from prismer_jax.decode.sampling import FILTERINGS
from prismer_jax.models import conversion
from prismer_jax.models.nanovlm import NanoVLM, config_json
from prismer_jax.models.nanovlm.conversion import FREQUENCIES, LLAMA, SIGLIP, TABLE, WORDS
from prismer_jax.towers.causal_lm import CausalLM, inverse_frequencies, rotary
from prismer_jax.towers.vit import ViT
from prismer_jax.weights import rules

from . import nanovlm_data
from .case import Case, Check, Mismatch, Outputs, check_shapes, filled, relative

# What nanovlm_train leaves out: it is nanovlm_tiny's.
_DEFAULTS = {"vit_ln_eps": 1e-6, "lm_max_position_embeddings": 8192, "lm_re_base": 100000, "lm_rms_eps": 1e-5}
_DEFAULTS |= {"vit_dropout": 0.0, "lm_dropout": 0.0}


def fields_of(case: Case) -> dict[str, Any]:
    c = {**_DEFAULTS, **case.config}
    vision = {ours: c[theirs] for ours, theirs in config_json.VISION.items()}
    language = {ours: c[theirs] for ours, theirs in config_json.LANGUAGE.items()} | {
        "rope_base": float(c["lm_re_base"])
    }
    token = c.get("image_token_id", c.get("lm_base_vocab_size"))
    return dict(vision=vision, language=language, shuffle=c["mp_pixel_shuffle_factor"], image_token=token)


def model_of(case: Case) -> NanoVLM:
    """Returns the model of a case's config, which counts columns as the reference does."""
    return models.build("nanovlm", positions="column", **fields_of(case))


def variables_of(case: Case, model: NanoVLM) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, conversion.from_torch(case.state(), model, TABLE, case.name))


def keys(case: Case) -> Outputs:
    """Compares the keys and shapes of the file that is written for a model of these sizes."""
    model = model_of(case)
    fields = config_json.fields_of(_config_of(case), case.folder / "manifest.json")
    if fields != {**fields_of(case), "image_token": fields["image_token"]}:
        raise Mismatch("config.json is read as another model")
    shapes = conversion.shapes_of(model)
    ours = rules.key_shapes(TABLE, shapes) | {FREQUENCIES: (model.language["width"] // model.language["heads"] // 2,)}
    del ours[WORDS]  # of the tied pair the file has one
    check_shapes(ours, {key: case.shapes[key] for key in case.manifest["saved_keys"]})
    count = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
    if count != case.manifest["n_parameters_tied"]:
        raise Mismatch(f"{count} parameters instead of {case.manifest['n_parameters_tied']}")
    yield from ()


def _config_of(case: Case) -> dict[str, Any]:
    """Returns the config.json of a file whose manifest lists its keys; values that it leaves out do not matter."""
    return dict.fromkeys(case.manifest["config_json_keys"]) | case.config


def rows_of_tiles(pixels: np.ndarray, counts: list[int]) -> dict[str, np.ndarray]:
    """Returns `image` [B,M,H,W,3] and `image_mask`, from tiles [N,3,H,W] in the rows' order; pixels stay in [0, 1]."""
    most, ends = max(counts), np.cumsum(counts)
    image = np.zeros((len(counts), most, *pixels.shape[2:], 3), np.float32)
    for row, (end, count) in enumerate(zip(ends, counts, strict=True)):
        image[row, :count] = rearrange(pixels[end - count : end], "n c h w -> n h w c")
    return {"image": image * 255, "image_mask": np.arange(most)[None] < np.asarray(counts)[:, None]}


def texts(ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, jax.Array]:
    ids = jnp.asarray(ids, jnp.int32)
    real = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask, bool)
    return {"text": ids, "mask_input": real, "mask_ar": jnp.ones_like(ids), "segment": jnp.zeros_like(ids)}


def loss_mask(ids: np.ndarray, labels: np.ndarray) -> jax.Array:
    """Returns the weights of a text's own tokens; the reference's labels stand one column before them."""
    weights = np.zeros(ids.shape, np.float32)
    weights[:, 1:] = labels[:, :-1] != -100
    if not np.array_equal(ids[:, 1:][weights[:, 1:] > 0], labels[:, :-1][weights[:, 1:] > 0]):
        raise Mismatch("labels that are not the text's next tokens")
    return jnp.asarray(weights)


def columns(mask: np.ndarray, step: int, tolerance: float) -> Check:
    """Compares every step-th column with mask 1: those of padding influence nothing, and differ."""
    real = np.asarray(mask, bool)[:, ::step]

    def measure(ours: np.ndarray, theirs: np.ndarray) -> float:
        return relative(ours[real], theirs[real]) if ours.shape == theirs.shape else np.inf

    return Check(measure, tolerance)


@functools.partial(jax.jit, static_argnums=0)
def apply(model: NanoVLM, variables: Any, batch: Any) -> Any:
    """Returns (logits, encoded tiles, states after the last norm, intermediates)."""

    def read(model: NanoVLM, batch: Any) -> Any:
        encoded = model.encode(batch)
        hidden, _, _ = model.read(encoded, batch)
        return model.decoder.logits(hidden), encoded, hidden

    (logits, encoded, hidden), state = model.apply(variables, batch, method=read, mutable=["intermediates"])
    return logits, encoded, hidden, tree.flatten(state["intermediates"])


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model: NanoVLM, params: Any, batch: Any) -> Any:
    def loss(params: Any) -> Any:
        costs = losses.cross_entropy(functools.partial(model.apply, {"params": params}), batch, 0.0, "batch")
        return losses_mean(costs)

    return jax.value_and_grad(loss)(params)


def losses_mean(costs: losses.Costs) -> jax.Array:
    total, weight = costs["loss"]
    return total.sum() / weight.sum()


def gradients(case: Case, grads: Any) -> Outputs:
    for key, array in conversion.to_torch({"params": grads}, TABLE).items():
        yield f"out/grad/{key}", array
    yield "out/grad_norm", jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _greedy(model: NanoVLM, eos: int, variables: Any, batch: Any, max_new: int) -> Any:
    encoded = model.apply(variables, batch, method="encode")
    prefill = functools.partial(model.apply, variables, method="prefill")
    extend = functools.partial(model.apply, variables, method="extend")
    return greedy(prefill, extend, encoded, batch, eos=eos, pad=eos, max_new=max_new)[0][:, 0]


def continued(batch: dict[str, Any], tokens: jax.Array) -> dict[str, Any]:
    """Returns a batch whose texts go on with these tokens."""
    text = texts(tokens)
    return {**batch, **{key: jnp.concatenate([jnp.asarray(batch[key]), text[key]], axis=1) for key in text}}


def head(case: Case) -> Outputs:
    """Runs HEAD's pipeline: rows of several tiles, packed rows, greedy decoding with a cache, sampling, rotation."""
    model, tolerance = model_of(case), case.manifest["tolerance"]
    variables = variables_of(case, model)
    mask, pixels, counts = case["attention_mask"], case["pixel_values"], case.config["subimages_per_sample"]
    images = rows_of_tiles(pixels, counts)
    batch = {**images, **texts(case["input_ids"], mask), "mask_loss": loss_mask(case["input_ids"], case["labels"])}
    logits, encoded, hidden, taps = apply(model, variables, batch)
    there = np.flatnonzero(images["image_mask"])
    yield "tap/vit_embed", taps["vision/embeddings/0"][there]
    yield "tap/vit_block0", taps["vision/blocks/after_mlp/0"][0][there]
    yield "out/vision_features", taps["features/0"][there]
    yield "out/projector", encoded.reshape(-1, model.image_tokens, encoded.shape[-1])[there]
    yield "tap/spliced_embeddings", taps["spliced/0"], columns(mask, 4, tolerance)
    yield "tap/lm_block0_attn", taps["language/blocks/attention_out/0"][0][:, 0], columns(mask, 4, tolerance)
    for layer in (0, 2):
        yield f"tap/lm_block{layer}", taps["language/blocks/after_mlp/0"][layer][:, 0], columns(mask, 4, tolerance)
    yield "out/hidden", hidden, columns(mask, 2, 2e-5)  # a wrong GELU shows at 3.6e-4 only
    yield "out/logits", logits, columns(mask, 3, tolerance)
    loss, grads = loss_and_gradients(model, variables["params"], batch)
    yield "out/loss", loss
    yield from gradients(case, grads)

    packed = rows_of_tiles(pixels[case["packed_subimage_index"]], case.config["packed_subimages_per_row"])
    packed |= texts(case["packed_ids"], case["packed_attention_mask"])
    packed["mask_loss"] = loss_mask(case["packed_ids"], case["packed_labels"])
    yield "out/packed_logits", apply(model, variables, packed)[0], columns(case["packed_attention_mask"], 3, tolerance)
    yield "out/packed_loss", loss_and_gradients(model, variables["params"], packed)[0]

    prompts, new = (
        {**images, **texts(case["prompt_ids"], case["prompt_attention_mask"])},
        case.config["gen_max_new_tokens"],
    )
    tokens = _greedy(model, -1, variables, prompts, new)
    yield "out/gen_raw", tokens
    yield "out/gen_eos", _greedy(model, case.config["gen_eos_token_id"], variables, prompts, new)
    steps = apply(model, variables, continued(prompts, tokens))[0][:, case["prompt_ids"].shape[1] - 1 : -1]
    yield "out/gen_step_logits", steps
    single = {**rows_of_tiles(pixels[: counts[0]], counts[:1]), **texts(case["prompt_single_ids"])}
    yield "out/gen_single_nomask", _greedy(model, -1, variables, single, new)
    for name in case.arrays:
        if match := re.fullmatch(r"out/sample_probs_k(\d+)_p([\d.]+)_T([\d.]+)", name):
            top_k, top_p, temperature = int(match[1]), float(match[2]), float(match[3])
            logits = FILTERINGS["nanovlm"](steps[:, 0], temperature=temperature, top_k=top_k, top_p=top_p)
            yield name, jax.nn.softmax(logits)
        if match := re.fullmatch(r"out/rope_(cos|sin)_T(\d+)_max(\d+)", name):
            turn = rotary(jnp.arange(int(match[2])), 12, case.config["lm_re_base"], int(match[3]))
            yield name, turn[match[1] == "sin"]
    yield "int/decoder.rotary_embd.inv_freq", inverse_frequencies(12, case.config["lm_re_base"])


def v01(case: Case) -> Outputs:
    """Runs version 0.1's pipeline: one image in front of a text that is padded on the left."""
    model = model_of(case)
    variables = variables_of(case, model)
    ids, mask = case["input_ids"], case["attention_mask"]
    images = rows_of_tiles(case["pixel_values"], [1, 1, 1])
    batch = {**images, **texts(ids, mask), "mask_loss": loss_mask(ids, case["labels"])}
    logits, encoded, hidden, taps = apply(model, variables, batch)
    yield "out/vision_features", taps["features/0"]
    yield "out/projector", encoded
    yield "out/hidden", hidden, Check(relative, 2e-5)
    yield "tap/lm_block0", taps["language/blocks/after_mlp/0"][0][:, 0]
    yield "out/logits", logits[:, -ids.shape[1] :]
    loss, grads = loss_and_gradients(model, variables["params"], batch)
    yield "out/loss", loss
    yield from gradients(case, grads)

    new = case.config["gen_max_new_tokens"]
    mmstar = {key: images[key][:2] for key in images} | texts(case["mmstar_input_ids"], case["mmstar_attention_mask"])
    single = {key: images[key][:1] for key in images} | texts(case["prompt_ids"])
    for name, prompts in (("mask", mmstar), ("nomask", single)):
        tokens = _greedy(model, -1, variables, prompts, new)
        yield f"out/gen_{name}", tokens
        steps = apply(model, variables, continued(prompts, tokens))[0][:, -new - 1 : -1]
        yield f"out/gen_{name}_step_logits", steps
    yield "int/decoder.rotary_embd.inv_freq", inverse_frequencies(8, case.config["lm_re_base"])


def training(case: Case) -> Outputs:
    """Takes three AdamW steps with the rates of HEAD's three groups, and with those of v0.1's two; packs samples."""
    check_rates(case)
    nanovlm_data.check_knapsack(case)
    yield from nanovlm_data.producer(case)
    model = model_of(case)
    ids, labels = case["input_ids"], case["labels"]
    images = rows_of_tiles(case["pixel_values"], case.config["subimages_per_sample"])
    batch = {**images, **texts(ids, case["attention_mask"]), "mask_loss": loss_mask(ids, labels)}
    head, v01 = case.config["head3"], case.config["v01two"]
    groups = {
        "head3": [head["lr_mp"], head["lr_vision_backbone"], head["lr_language_backbone"]],
        "v01two": [v01["lr_mp"], v01["lr_backbones"]],
    }
    parts = {"head3": head["micro_batches"], "v01two": [v01["batch"]]}
    for name, rates in groups.items():
        start = variables_of(case, model)["params"]
        highest = dict(zip(("projector", "vision", "language"), [*rates, rates[-1]], strict=False))
        mults = [(f"{part}/.*", rate / rates[0]) for part, rate in highest.items()]
        optimizer = optim.make(
            tree.flatten(start),
            case.config["max_training_steps"],
            lr=rates[0],
            end_lr=0.1 * rates[0],
            warmup_share=0.03,
            warmup_from=1,
            weight_decay=0.01,
            clip_norm=case.config[name]["max_grad_norm"],
            lr_mults=mults,
        )
        params, opt, losses_seen, norms = tree.flatten(start), optimizer.tx.init(tree.flatten(start)), [], []
        for update in range(case.config[name]["updates"]):
            results = [
                loss_and_gradients(model, tree.unflatten(params), {k: v[np.array(rows)] for k, v in batch.items()})
                for rows in parts[name]
            ]
            losses_seen += [loss for loss, _ in results]
            grads = jax.tree.map(lambda *g: sum(g) / len(g), *(tree.flatten(g) for _, g in results))
            norms.append(optax.global_norm(grads))
            steps, opt = optimizer.tx.update(grads, opt, params)
            params = optax.apply_updates(params, steps)
            if update in (0, 2):
                changes = {"params": jax.tree.map(jnp.subtract, tree.unflatten(params), start)}
                for key, array in conversion.to_torch(changes, TABLE).items():
                    yield f"out/{name}/delta{update + 1}/{key}", array
        yield f"out/{name}/micro_loss", jnp.stack(losses_seen)
        yield f"out/{name}/grad_norm", jnp.stack(norms)
        schedule = optimizer.schedules["lr"]
        yield f"out/{name}/lr", np.array([[schedule(step) * rate / rates[0] for rate in rates] for step in range(3)])


def check_rates(case: Case) -> None:
    for name, rates in case.manifest["get_lr"].items():
        total = int(re.match(r"max_steps=(\d+)", name)[1])
        for highest in rates.keys() - {"steps"}:
            lr = float(highest)
            at = optim.make_schedule(
                "cosine", lr=lr, end_lr=0.1 * lr, total_steps=total, warmup_steps=0.03 * total, warmup_from=1
            )
            ours = [float(at(step)) for step in rates["steps"]]
            if not np.allclose(ours, rates[highest], rtol=1e-12):
                raise Mismatch(f"rates of {name}: {ours} instead of {rates[highest]}")


def backbones(case: Case) -> Outputs:
    """Reads the keys of Hugging Face's SigLIP and Llama into the towers, and runs these where the case has inputs."""
    prefixes = {"siglip": "vision", "llama": "language"} if case.arrays else {"": _kind(case)}
    variables: dict[str, Any] = {}
    for prefix, part in prefixes.items():
        tower, table = _tower(part, case.config.get({"siglip": "vision", "llama": "lm"}.get(prefix), case.config), case)
        entries = {k.removeprefix(f"{prefix}/"): e for k, e in case.manifest["tensors"].items() if k.startswith(prefix)}
        state = {key: _array(case, key, tuple(entry["shape"])) for key, entry in entries.items()}
        shapes = {f"params/{part}/{name}": leaf for name, leaf in tree.flatten(_shapes(tower, part)).items()}
        used = {key for key in table.spell(state) if key in rules.key_shapes(table, shapes)}
        mapped = case.manifest["nanovlm_mapping"]
        if used != set(mapped.get(prefix, mapped)):
            raise Mismatch(f"other keys are used: {rules.grouped(sorted(used ^ set(mapped.get(prefix, mapped))))}")
        flat = rules.from_torch(state, table, shapes, case.name)
        if case.arrays:
            arrays = {name.removeprefix(f"params/{part}/"): jnp.asarray(make()) for name, make in flat.items()}
            variables[part] = tower, {"params": tree.unflatten(arrays)}
    if not case.arrays:
        return
    tower, params = variables["vision"]
    yield "out/vision_features", tower.apply(params, jnp.asarray(rearrange(case["pixel_values"], "b c h w -> b h w c")))
    tower, params = variables["language"]
    ids = jnp.asarray(case["ids"], jnp.int32)

    def logits(tower: CausalLM) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden, _ = tower(tower.embed(ids)[:, None], positions[:, None], {"new": jnp.tri(ids.shape[1], dtype=bool)})
        return tower.logits(hidden[:, 0])

    yield "out/lm_logits", nn.apply(logits, tower)(params)


def _array(case: Case, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array under a key; of a manifest without outputs, one of that shape."""
    if not case.arrays:
        return np.broadcast_to(np.float32(0), shape)
    return filled(case.manifest["salt"], case.manifest["gain"], key, shape)


def _kind(case: Case) -> str:
    return "vision" if "siglip" in case.name else "language"


def _tower(part: str, config: dict[str, Any], case: Case) -> tuple[ViT | CausalLM, rules.Table]:
    if part == "vision":
        return ViT(**config_json.vision_fields(config, case.folder)), SIGLIP
    return CausalLM(**config_json.language_fields(config, case.folder)), LLAMA


def _shapes(tower: ViT | CausalLM, part: str) -> Any:
    """Returns the shapes of a tower's parameters."""
    if part == "vision":
        image = jnp.zeros((1, tower.image_size, tower.image_size, 3))
        return jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    one = jnp.zeros((1, 1, 1), jnp.int32)
    arguments = (jnp.zeros((1, 1, 1, tower.width)), one, {"new": one == 0})
    return jax.eval_shape(tower.init, jax.random.key(0), *arguments)["params"]
