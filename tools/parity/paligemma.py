"""PaliGemma's golden cases of models, training and files; those of data are in paligemma_data.py."""

from __future__ import annotations

import functools
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prismer_jax import decode, losses, optim, tree
from prismer_jax.decode.sampling import best_first, narrow
from prismer_jax.models import conversion
from prismer_jax.models.paligemma import FREEZE, NOT_DECAYED, PaliGemma, build
from prismer_jax.models.paligemma.conversion import TABLE, official_table
from prismer_jax.weights import rules

from .case import Case, Check, Mismatch, Outputs, check_shapes, relative

FORWARD = Check(relative, 2e-5)  # a wrong GELU shows at 1.5e-4 only
TRAINING = Check(relative, 1e-3)  # Adam makes rounding large
BIG_VISION = dict(clip_norm=1.0, wd_mults=[(NOT_DECAYED, 0.0)])


def model_of(case: Case) -> PaliGemma:
    """Returns the model of a case's config."""
    img, llm = case.config["img"], case.config["llm"]
    vision = dict(image_size=img["res"], patch_size=img["patch_size"][0], width=img["width"], layers=img["depth"])
    vision |= dict(heads=img["num_heads"], mlp_dim=img["mlp_dim"])
    names = dict(width="width", layers="depth", heads="num_heads", kv_heads="num_kv_heads", head_dim="head_dim")
    names |= dict(mlp_dim="mlp_dim", vocab_size="vocab_size", post_norms="post_norms")
    language = {ours: llm[theirs] for ours, theirs in names.items()}
    language |= dict(attention_cap=llm["attn_logits_softcap"], logit_cap=llm["final_logits_softcap"])
    if llm["query_pre_attn_norm"] == "rsqrt_emb_per_head":
        language["query_scale"] = (llm["width"] // llm["num_heads"]) ** -0.5
    return build("tiny", vision=vision, language=language)


def state_of(case: Case) -> dict[str, np.ndarray]:
    """Returns the weights by the rule of these cases: center + std * noise."""
    state = {}
    for key, entry in case.manifest["tensors"].items():
        rng = np.random.RandomState(zlib.crc32((case.manifest["salt"] + key).encode()))
        noise = rng.standard_normal(int(np.prod(entry["shape"]))).reshape(entry["shape"])
        state[key] = (entry["fill"]["center"] + entry["fill"]["std"] * noise).astype(np.float32)
    return state


def keys(case: Case) -> Outputs:
    """Compares the keys and shapes of the published files, big_vision's and Hugging Face's."""
    variant = case.name.removeprefix("paligemma_").removesuffix("_manifest").removeprefix("pt_")
    size = variant.rpartition("_")[0]
    model = build(f"{size}_pt_{case.config['res']}" if size else f"pt_{variant}")
    shapes = conversion.shapes_of(model)
    check_shapes(rules.key_shapes(official_table(model), shapes), case.shapes)
    count = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
    if count != case.manifest["n_params"]:
        raise Mismatch(f"{count} parameters instead of {case.manifest['n_params']}")
    if isinstance(case.manifest.get("hf"), dict):  # those of other resolutions differ in the positions alone
        theirs = {row["hf"]: tuple(row["hf_shape"]) for row in case.manifest["hf"]["map"]}
        ours = rules.key_shapes(TABLE, shapes)
        del ours["language_model.lm_head.weight"]  # tied
        check_shapes(ours, theirs)
    yield from ()


@functools.partial(jax.jit, static_argnums=0)
def apply(model: PaliGemma, variables: Any, batch: Any) -> Any:
    """Returns (hidden states, encoded image, logits, logits within the cap, mask, intermediates)."""

    def read(model: PaliGemma, batch: Any) -> Any:
        encoded = model.encode(batch)
        hidden, _, columns = model.read(encoded, batch)
        text = hidden[:, encoded.shape[1] :]
        return hidden, encoded, model.first_logits(text), model.decoder.logits(text), columns.seen

    result, state = model.apply(variables, batch, method=read, mutable=["intermediates"])
    return *result, tree.flatten(state["intermediates"])


def training_batch(case: Case) -> dict[str, jax.Array]:
    """Returns a batch of whose texts every column counts as real, as the reference's training has it."""
    text = jnp.asarray(case["text"], jnp.int32)
    batch = {"image": jnp.asarray(case["image_u8"]), "text": text, "mask_ar": jnp.asarray(case["mask_ar"], jnp.int32)}
    batch |= {"mask_input": jnp.ones(text.shape, bool), "segment": jnp.zeros_like(text)}
    return batch | {"mask_loss": jnp.asarray(case["mask_loss"], jnp.float32)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def loss_and_gradients(model: PaliGemma, params: Any, batch: Any, smoothing: float) -> Any:
    """Returns ((mean loss, loss of each example), gradient); the last column of a text is only predicted."""
    # The reference gives the smoothed share to all words but the right one.
    smoothing = smoothing * model.vocab_size / (model.vocab_size - 1)

    def loss(params: Any) -> Any:
        forward = functools.partial(model.apply, {"params": params})
        costs, weights = losses.cross_entropy(forward, batch, smoothing, "example")["loss"]
        return costs.sum() / weights.sum(), costs

    return jax.value_and_grad(loss, has_aux=True)(params)


def forward(case: Case) -> Outputs:
    """Runs the model on images and texts: states, logits, masks, loss and gradients."""
    model = model_of(case)
    table = official_table(model)
    variables = jax.tree.map(jnp.asarray, conversion.from_torch(state_of(case), model, table, case.name))
    batch = training_batch(case)
    given = {key: value if key == "image" else value[:, :-1] for key, value in batch.items()}
    hidden, encoded, logits, capped, seen, taps = apply(model, variables, given)
    yield "tap/img_with_posemb", taps["vision/embeddings/0"]
    yield "tap/img_block00_sa", taps["vision/blocks/after_attention/0"][0]
    yield f"tap/img_block{model.vision['layers'] - 1:02d}_mlp", taps["vision/blocks/after_mlp/0"][-1]
    yield "tap/img_encoded", taps["features/0"]
    yield "out/zimg", encoded, FORWARD
    yield "tap/ztxt", taps["words/0"]
    yield "out/attn_mask", seen.astype(np.uint8)
    yield "tap/llm_encoded", taps["language/blocks/after_mlp/0"][-1][:, 0]
    yield "tap/llm_pre_logits", hidden
    video = {"image": batch["image"][None, :2]}
    yield "out/zimg_video_2frames", model.apply(variables, video, method="encode")
    yield "out/text_logits", logits, FORWARD
    yield "out/text_argmax", logits.argmax(-1).astype(np.int32)
    yield "out/llm_logits_text", capped, FORWARD
    (loss, costs), grads = loss_and_gradients(model, variables["params"], batch, 0.0)
    yield "out/loss", loss
    yield "out/loss_per_example", costs
    yield "out/loss_label_smoothing_0.3", loss_and_gradients(model, variables["params"], batch, 0.3)[0][0]
    official = conversion.to_torch({"params": grads}, table)
    for key, array in official.items():
        yield f"out/grad/{key}", array
    norms = [np.linalg.norm(official[key]) for key in case.manifest["grad_norm_keys"]]
    yield "out/grad_norms", np.asarray(norms, np.float32)
    yield "out/l2_grads", np.sqrt(np.sum(np.square(norms)))


def prompts_of(case: Case) -> dict[str, jax.Array]:
    """Returns the prompts of a case, padded on the left."""
    real = case["decode_mask_input"].astype(bool)
    order = np.argsort(real, axis=1, kind="stable")
    moved = {key: jnp.asarray(np.take_along_axis(case[f"decode_{key}"], order, 1)) for key in ("text", "mask_ar")}
    real = jnp.asarray(np.take_along_axis(real, order, 1))
    image = jnp.asarray(case["decode_image_u8"])
    return {**moved, "image": image, "mask_input": real, "segment": jnp.zeros_like(moved["text"])}


@functools.partial(jax.jit, static_argnums=0)
def steps(model: PaliGemma, variables: Any, batch: Any, tokens: jax.Array) -> Any:
    """Returns the logits [B,S,V] before each of the tokens that follow the prompts, and the cache of the prompts."""
    encoded = model.apply(variables, batch, method="encode")
    first, cache = model.apply(variables, encoded, batch, tokens.shape[1], method="prefill")

    def step(cache: Any, token: jax.Array) -> Any:
        logits, cache = model.apply(variables, cache, token[:, None, None], method="extend")
        return cache, logits[:, 0, 0]

    _, later = jax.lax.scan(step, cache, tokens.T)
    return jnp.concatenate([first, later.swapaxes(0, 1)], axis=1), cache


def log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


def ended(tokens: np.ndarray, eos: int, mask: np.ndarray, behind: int = 0) -> int:
    """Returns how many columns the reference fills: until all rows that count have ended, and `behind` more."""
    last = max(int(np.argmax(row == eos)) if eos in row else len(row) - 1 for row in tokens[mask])
    return min(last + 1 + behind, tokens.shape[1])


def decoding(case: Case) -> Outputs:
    """Continues prompts of different lengths: greedily, with beams, with samples."""
    model = model_of(case)
    variables = jax.tree.map(
        jnp.asarray, conversion.from_torch(state_of(case), model, official_table(model), case.name)
    )
    batch, config = prompts_of(case), case.config
    generate = functools.partial(decode.generate, model, variables, batch, pad=0)
    as_given = {key: jnp.asarray(case[f"decode_{key}"]) for key in ("text", "mask_ar", "mask_input")}
    as_given |= {"mask_input": as_given["mask_input"] > 0, "image": batch["image"], "segment": batch["segment"]}
    *_, seen, _ = apply(model, variables, as_given)
    front = ((0, 0), (seen.shape[1] - batch["text"].shape[1], 0))
    real = np.pad(case["decode_mask_input"] > 0, front, constant_values=True)
    yield "out/decode_attn_mask", (seen & real[:, :, None]).astype(np.uint8)  # there, pads see nothing
    greedy = functools.partial(generate, eos=-1, method="greedy", max_new=config["max_decode_len"])
    tokens = greedy()[0][:, 0]
    logits, cache = steps(model, variables, batch, tokens)
    yield "out/prefill_logits", logits[:, :1]
    yield "out/extend1_logits", logits[:, 1:2]
    yield "out/greedy_tokens", tokens
    yield "out/greedy_logp", log_probs(logits[:, :-1], tokens)
    yield from prompt_keys(case, cache)
    rounded = model.clone(language=model.language.copy({"keys_dtype": "bfloat16"}))
    yield (
        "out/greedy_tokens_bf16cache",
        (again := decode.generate(rounded, variables, batch, **greedy.keywords)[0][:, 0]),
    )
    # A last bit of float32 decides which way a key is rounded.
    gains = log_probs(steps(rounded, variables, batch, again)[0][:, :-1], again)
    yield "out/greedy_logp_bf16cache", gains, Check(relative, 2e-3)
    forbidden = tuple(case["mask_logits_ids"].tolist())
    allowed = greedy(forbidden=forbidden)[0][:, 0]
    yield "out/greedy_masklogits_tokens", allowed
    yield "out/greedy_masklogits_logp", log_probs(steps(model, variables, batch, allowed)[0][:, :-1], allowed)

    # Rows go on behind their own end there until all have ended; here they do not, and their texts are equal.
    eos, rows, mask = config["decode_eos_token"], [0, 2, 1], np.array([True, True, False])
    stopped = np.asarray(greedy(eos=eos)[0][:, 0])
    for row, theirs in zip(stopped, np.asarray(tokens), strict=True):
        end = int(np.argmax(theirs == eos)) + 1 if eos in theirs else len(theirs)
        if not np.array_equal(row[:end], theirs[:end]) or row[end:].any():
            raise Mismatch("a row does not end with its eos")
    for name, behind in (("", 0), ("_lookbehind2", 2)):
        whole = np.asarray(tokens)[rows]
        there = np.arange(whole.shape[1]) < ended(whole, eos, mask, behind)
        yield f"out/greedy_stop{name}_tokens", np.where(there, whole, 0)
        if not name:
            yield "out/greedy_stop_logp", np.where(there, np.asarray(log_probs(logits[:, :-1], tokens))[rows], 0)

    beams = functools.partial(generate, method="big_vision_beam")
    for name, beam, length in (("beam1_len6", 1, 6), ("beam3_len6", 3, 6), ("beam3_len28", 3, 28)):
        yield f"out/{name}_tokens", beams(eos=eos, num_beams=beam, max_new=length)[0][:, 0]
    rare = beams(eos=config["beam_rare_eos_token"], num_beams=3, max_new=16)[0][:, 0]
    yield "out/beam3_rare_eos_len16_tokens", rare
    for name in case.arrays:
        if match := re.fullmatch(r"out/nucleus_keep_p([\d.]+)_t([\d.]+)", name):
            left = narrow(logits[:, 0], temperature=float(match[2]), top_p=float(match[1]))
            yield name, (left > -jnp.inf).astype(jnp.uint8)
            drawn = [jax.random.categorical(jax.random.PRNGKey(seed), left) for seed in range(8)]
            yield name.replace("keep", "sample"), jnp.stack(drawn).astype(jnp.int32)
    tokens, gains = case["bon_tokens"], case["bon_logp"]
    before = np.cumsum(tokens == eos, axis=1) - (tokens == eos) == 0
    scores = np.where(before, gains, 0).sum(1)
    yield "out/bon_score", scores
    groups = jnp.asarray(scores).reshape(-1, 3)
    yield "out/bon3_tokens", best_first(jnp.asarray(tokens).reshape(len(groups), 3, -1), groups, 1)[0][:, 0]
    yield "out/bon3_logp", best_first(jnp.asarray(gains).reshape(len(groups), 3, -1), groups, 1)[0][:, 0]


def prompt_keys(case: Case, cache: Any) -> Outputs:
    """Compares the keys and values of image and prompts; there they lie to the right, and those of pads differ."""
    real = np.asarray(cache["shared"]["mask"])
    order, number = np.argsort(real, axis=1, kind="stable"), real.sum(1)
    total = real.shape[1]
    room = case.config["max_decode_len"]
    behind = np.pad(np.take_along_axis(real, order, 1), ((0, 0), (0, room)))

    def measure(ours: np.ndarray, theirs: np.ndarray) -> float:
        return relative(ours[behind], theirs[behind])

    check = Check(measure, case.manifest["tolerance"])
    for key, name, layer in (("k", "k_cache_layer0", 0), ("v", "v_cache_last_layer", -1)):
        moved = np.take_along_axis(np.asarray(cache["shared"]["keys"][key][layer]), order[..., None, None], 1)
        yield f"tap/prefill_{name}", np.pad(moved, ((0, 0), (0, room), (0, 0), (0, 0))), check
    yield "tap/prefill_seq_len", number.astype(np.int32)
    yield "tap/prefill_cache_begin", (total - number).astype(np.int32)
    yield "tap/prefill_cache_end", np.full(len(real), total, np.int32)
    layers = cache["shared"]["keys"]["k"].shape[0]
    yield "tap/prefill_idx", np.full((len(real), layers), total, np.int32)


def training(case: Case) -> Outputs:
    """Takes three steps of big_vision's optimiser, of everything, without the image encoder, without Gemma."""
    model = model_of(case)
    table, batch = official_table(model), training_batch(case)
    for name, frozen in (("train", "none"), ("train_frozen_vit", "freeze_vision"), ("train_frozen_llm", "freeze_lang")):
        variables = conversion.from_torch(state_of(case), model, table, case.name)
        start = jax.tree.map(jnp.asarray, variables["params"])
        trained, rest = optim.split(start, FREEZE[frozen])
        optimizer = optim.make(trained, 10, **BIG_VISION | dict(lr=3e-3, weight_decay=0.1 / 3e-3, warmup_steps=1))
        state, rows = optimizer.tx.init(trained), []
        for _ in range(3):
            (loss, _), grads = loss_and_gradients(model, optim.merge(trained, rest), batch, 0.0)
            grads = {key: leaf for key, leaf in tree.flatten(grads).items() if key in trained}
            updates, state = optimizer.tx.update(grads, state, trained)
            trained = optax.apply_updates(trained, updates)
            norms = [optax.global_norm(x) for x in (grads, updates, {**trained, **rest})]
            rows.append([loss, *norms])
        yield f"out/{name}_loss_l2grads_l2updates_l2params", np.asarray(rows, np.float32), TRAINING
        yield f"out/{name}_schedule", np.array([optimizer.schedules["lr"](s) / 3e-3 for s in range(10)], np.float32)
        after = conversion.to_torch({"params": optim.merge(trained, rest)}, table)
        if frozen == "none":
            for key, array in after.items():
                yield f"out/train_after3/{key}", array, TRAINING
        before = state_of(case)
        changed = [not np.array_equal(after[key], before[key]) for key in case.manifest["grad_norm_keys"]]
        yield f"out/{name}_changed", np.asarray(changed, np.uint8)


def tiny(case: Case) -> Outputs:
    """Runs all that a case has: the forward pass, decoding and training."""
    yield from forward(case)
    if case.wants("out/greedy"):
        yield from decoding(case)
        yield from training(case)
