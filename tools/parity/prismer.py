"""Prismer and PrismerZ: keys, encoder, logits, losses, gradients, training steps, generation, ranking, positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from prismer_jax import losses, optim, tree
from prismer_jax.batch import prompts
from prismer_jax.decode.beam import beam_search
from prismer_jax.decode.greedy import greedy
from prismer_jax.decode.ranking import rank
from prismer_jax.labels import EXPERTS, FEATURES, MAX_IDS
from prismer_jax.models import conversion
from prismer_jax.models.prismer import FREEZE, Prismer, build, table
from prismer_jax.towers.label_lookup import label_tables
from prismer_jax.towers.layers import resize_positions
from prismer_jax.weights import rules

from .case import Case, Mismatch, Outputs, check_shapes

PAD, EOS = 1, 2  # RoBERTa's


def positions(case: Case) -> Outputs:
    for pair in case.config["pairs"]:
        new = int(pair.split("->")[1])
        name = "pe_" + pair.replace("->", "to")
        yield f"out/{name}", resize_positions(case[name], (new, new))


def model_of(case: Case, **decoder: Any) -> Prismer:
    """Builds the model that a manifest's `config` describes."""
    vit, roberta, resampler = (case.config[k] for k in ("vit", "roberta", "resampler"))
    return build(
        "tiny",
        [e for e in case.config["expert_order"] if e != "rgb"],
        image_size=vit["input_resolution"],
        **{k: vit[k] for k in ("patch_size", "width", "layers", "heads")},
        **({"latents": resampler["num_latents"], "resampler_layers": resampler["layers"]} if resampler else {}),
        **({"resampler_heads": resampler["heads"]} if resampler else {}),
        decoder={
            "width": roberta["hidden_size"],
            "layers": roberta["num_hidden_layers"],
            "heads": roberta["num_attention_heads"],
            "mlp_dim": roberta["intermediate_size"],
            "vocab_size": roberta["vocab_size"],
            "max_positions": roberta["max_position_embeddings"],
            "dropout": roberta["hidden_dropout_prob"],
            **decoder,
        },
    )


def check_keys(case: Case, model: Prismer) -> None:
    """Checks that the model converts to exactly the manifest's keys and shapes, and its number of parameters."""
    shapes = conversion.shapes_of(model)
    check_shapes(rules.key_shapes(table.TABLE, shapes), case.shapes)
    count = sum(int(np.prod(leaf.shape)) for leaf in shapes.values() if jnp.issubdtype(leaf.dtype, jnp.floating))
    if count != case.config.get("n_parameters", count):
        raise Mismatch(f"{count} parameters instead of {case.config['n_parameters']}")
    for mode, trainable in case.config.get("n_trainable", {}).items():
        parts, _ = optim.split(tree.unflatten(shapes)["params"], FREEZE[mode])
        if (count := sum(int(np.prod(leaf.shape)) for leaf in parts.values())) != trainable:
            raise Mismatch(f"{mode} trains {count} parameters instead of {trainable}")
    for mode, frozen in case.config.get("frozen", {}).items():
        _, parts = optim.split(tree.unflatten(shapes)["params"], FREEZE[mode])
        keys = rules.keys_of((f"params/{name}" for name in parts), table.TABLE, shapes)
        if wrong := keys ^ set(frozen):
            raise Mismatch(f"{mode} freezes other parameters: {rules.grouped(sorted(wrong))}")


def vision_inputs(case: Case) -> dict[str, Any]:
    """Returns the arguments of encode_features: id maps stay ids, with the features of each id beside them."""
    stored = {"seg_coco": "seg_coco", "seg_ade": "seg_ade", "obj_detection": "obj", "ocr_detection": "ocr"}

    def scaled(name: str) -> jax.Array:
        return jnp.asarray(rearrange(case[f"{name}_u8"], "b c h w -> b h w c"), jnp.float32) / 127.5 - 1

    features: dict[str, Any] = {}
    for expert in case.config["expert_order"][1:]:
        if EXPERTS[expert].embed == "scaled":
            features[expert] = scaled(expert)
            continue
        table = case[f"{stored[expert]}_table"]
        palette = np.zeros((1, MAX_IDS, FEATURES), np.float32)
        palette[0, : len(table)] = table
        features[expert] = (jnp.asarray(case[f"{stored[expert]}_labels"]), jnp.asarray(palette))
    instances = None
    if "obj_detection" in features:
        rows = np.full((1, MAX_IDS), -1)
        rows[0, case["instance_ids"]] = case["instance_draws"]
        instances = (jnp.asarray(case["obj_instance"][:, 0]), jnp.asarray(rows))
    return {"image": scaled("rgb"), "features": features, "instances": instances}


def encode_features(model: Prismer, image: jax.Array, features: Any, instances: Any = None, train: bool = False) -> Any:
    """Encodes after the labels' lookup and all scaling: what the reference's network takes (encoder.Features)."""
    return model.vision(image, features, instances, train)


def texts(ids: Any) -> dict[str, jax.Array]:
    """Returns the text keys of a batch with these ids."""
    ids = np.asarray(ids, np.int32)
    return jax.tree.map(jnp.asarray, prompts(ids, ids != PAD))


def caption_mask(case: Case, prompt_length: int) -> jax.Array:
    mask = (case["caption_ids"] != PAD).astype(np.float32)
    mask[:, :prompt_length] = 0
    return jnp.asarray(mask)


def prismer(case: Case) -> Outputs:
    """Keys and shapes, encoder, logits, losses, gradients, generation, ranking; as far as the case stores them."""
    model = model_of(case)
    check_keys(case, model)
    if not case.arrays:  # a manifest of a full-size model
        return
    yield "int/text_decoder.roberta.embeddings.position_ids", np.arange(model.decoder["max_positions"])[None]
    variables = jax.tree.map(jnp.asarray, conversion.from_torch(case.state(), model, table.TABLE, case.name))
    variables["tables"] = label_tables(model.experts, model.classes)
    for key, array in conversion.to_torch(variables, table.TABLE).items():
        if key.endswith("num_batches_tracked"):
            yield f"int/{key}", array
    inputs = vision_inputs(case)

    def run(method: Any, *args: Any, **kwargs: Any) -> Any:
        return _apply(model, method, variables, *args, **kwargs)

    encoded, state = run(encode_features, **inputs)
    yield "out/encoder", encoded
    yield from encoder_taps(tree.flatten(state["intermediates"]["encoder"]), model, case.config["expert_order"][1:])
    if case.wants("out/logits"):
        text = jnp.asarray(case["caption_ids"], jnp.int32)
        logits, state = run("read", encoded, texts(text))
        yield "out/logits", logits
        yield "out/logits_argmax", logits.argmax(-1)
        yield from decoder_taps(tree.flatten(state["intermediates"]["decoder"]))
        loss = losses.token_costs(logits, text, caption_mask(case, case.config["prompt_length"]))
        yield "out/caption_loss", loss
        yield "out/caption_loss_mean", loss.mean()
        yield "out/caption_loss_noprefix", losses.token_costs(logits, text, caption_mask(case, 0))
    if case.wants("out/vqa_loss"):
        text = jnp.asarray(np.concatenate([case["vqa_question_ids"], case["vqa_answer_ids"]], 1), jnp.int32)
        mask = (text != PAD).at[:, : case["vqa_question_ids"].shape[1]].set(False).astype(jnp.float32)
        logits, _ = run("read", encoded, texts(text))
        yield "out/vqa_logits", logits
        yield "out/vqa_loss", losses.token_costs(logits, text, mask)
        # What the training does: the weight of an answer is in its mask.
        weighted = losses.token_costs(logits, text, mask * case["vqa_weights"][:, None])
        yield "out/vqa_loss_weighted_mean", weighted.mean()
    if case.wants("out/grad"):
        yield from gradients(
            jax.jit(jax.grad(functools.partial(caption_loss, model, case)))(variables["params"], variables)
        )
    yield from generation(case, model, variables, encoded)
    yield from ranking(case, model, variables, encoded)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model: Prismer, method: str, variables: Any, *args: Any, **kwargs: Any) -> Any:
    return model.apply(variables, *args, **kwargs, method=method, mutable=["intermediates"])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(model: Prismer, function: Callable, settings: tuple, variables: Any, *args: Any) -> Any:
    prefill = functools.partial(model.apply, variables, method="prefill")
    extend = functools.partial(model.apply, variables, method="extend")
    return function(prefill, extend, *args, **dict(settings))


def caption_loss(model: Prismer, case: Case, params: Any, variables: Any, train: bool = False) -> Any:
    """Returns the mean caption loss; in training (with dropout 0) also the updated BatchNorm statistics."""
    variables = {**variables, "params": params}
    mutable = ["batch_stats"] if train else []
    encoded, stats = model.apply(variables, **vision_inputs(case), train=train, method=encode_features, mutable=mutable)
    text = jnp.asarray(case["caption_ids"], jnp.int32)
    logits = model.apply(variables, encoded, texts(case["caption_ids"]), train, method="read")
    loss = losses.token_costs(logits, text, caption_mask(case, case.config["prompt_length"])).mean()
    return (loss, stats["batch_stats"]) if train else loss


def gradients(grads: Any) -> Outputs:
    for key, array in conversion.to_torch({"params": grads}, table.TABLE).items():
        yield f"out/grad:{key}", array
    yield "out/grad_global_norm", jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))


def encoder_taps(taps: Mapping[str, jax.Array], model: Prismer, order: Sequence[str]) -> Outputs:
    yield "tap/stem_rgb", rearrange(taps["tokens_rgb/0"], "b h w d -> b d h w")
    for domain in {EXPERTS[expert].stem for expert in model.experts}:
        yield f"tap/stem_{domain}", rearrange(taps[f"tokens_{domain}/0"], "b h w d -> b d h w")
    if model.experts:
        tokens = dict(zip(model.experts, jnp.split(taps["tokens/0"], len(model.experts), axis=1), strict=True))
        yield "tap/resampler_in", rearrange([tokens[e] for e in order], "e b n d -> (e n) b d")
        yield "tap/resampler", rearrange(taps["latents/0"], "b n d -> n b d")
    yield "tap/ln_pre", rearrange(taps["normed/0"], "b n d -> n b d")
    yield "tap/vit0_after_adaptor", rearrange(taps["blocks/after_adaptor/0"][0], "b n d -> n b d")


def decoder_taps(taps: Mapping[str, jax.Array]) -> Outputs:
    yield "tap/dec_embeddings", taps["embeddings/0"][:, 0]
    yield "tap/dec_hidden", taps["hidden/0"][:, 0]
    for i, layer in enumerate(taps["layers/after_adaptor/0"]):
        yield f"tap/dec_layer{i}_after_adaptor", layer[:, 0]


def generation(case: Case, model: Prismer, variables: Any, encoded: jax.Array) -> Outputs:
    for name in case.inputs(r"gen_(\w+)_ids"):
        settings = dict(case.config["generate"][name])
        prompt = case[f"gen_{name}_ids"]
        width = prompt.shape[1]  # the reference's lengths count the prompt
        lengths = {"max_new": settings.pop("max_length") - width, "min_new": settings.pop("min_length") - width}
        lengths |= {"eos": EOS, "pad": PAD}
        beam = tuple(sorted({**lengths, **settings, "prompt_length": width}.items()))
        tokens, scores = _decode(model, beam_search, beam, variables, encoded, texts(prompt))
        yield _sequences(case, f"out/gen_{name}_beam3_sequences", prompt, tokens[:, 0])
        yield f"out/gen_{name}_beam3_scores", scores[:, 0]
        if case.wants(f"out/gen_{name}_greedy"):
            tokens, _ = _decode(model, greedy, tuple(sorted(lengths.items())), variables, encoded, texts(prompt))
            yield _sequences(case, f"out/gen_{name}_greedy_sequences", prompt, tokens[:, 0])


def _sequences(case: Case, name: str, prompt: np.ndarray, tokens: jax.Array) -> tuple[str, jax.Array]:
    """The reference's arrays begin with the prompt and end with their longest sequence; the rest of ours are pads."""
    width, tokens = case.arrays[name].shape[1], jnp.concatenate([prompt.astype(np.int32), tokens], axis=1)
    return name, tokens[:, :width] if (tokens[:, width:] == PAD).all() else tokens


def ranking(case: Case, model: Prismer, variables: Any, encoded: jax.Array) -> Outputs:
    for name in case.inputs(r"(\w+)_rank_start_ids"):
        prompt = texts(case[f"{name}_rank_start_ids"])
        answers = jnp.asarray(case[f"{name}_rank_answers"], jnp.int32)
        logits = _apply(model, "read", variables, encoded, prompt)[0][:, -1]
        yield f"out/{name}_rank_prob_first", jax.nn.softmax(logits)[:, answers[:, 0]]
        settings = (("k", case.config["k_test"]), ("label_smoothing", case.config["label_smoothing"]))
        best, candidates, scores = _decode(model, rank, settings, variables, encoded, prompt, answers, answers != PAD)
        yield f"out/{name}_rank_topk_ids", candidates
        yield f"out/{name}_rank_log_probs", scores
        yield f"out/{name}_rank_max_ids", best


def prismer_train(case: Case) -> Outputs:
    """Takes three steps of AdamW with frozen parts and BatchNorm in training mode."""
    model = model_of(case, dropout=case.config["dropout"])
    check_keys(case, model)
    variables = jax.tree.map(jnp.asarray, conversion.from_torch(case.state(), model, table.TABLE, case.name))
    variables["tables"] = label_tables(model.experts, model.classes)
    trainable, frozen = optim.split(variables["params"], FREEZE[case.config["freeze"]])
    adamw = case.config["optimizer"]["AdamW"]
    if not adamw["lr"].startswith("5e-3*0.5*(1+cos(pi*step/10))"):
        raise Mismatch(f"a schedule that this tool does not know: {adamw['lr']}")
    tx = optim.make(
        trainable,
        10,
        lr=5e-3,
        weight_decay=adamw["weight_decay"],
        b1=adamw["betas"][0],
        b2=adamw["betas"][1],
        eps=adamw["eps"],
    ).tx

    @jax.jit
    def step(trainable: Any, stats: Any, opt: Any) -> Any:
        def loss_fn(trainable: Any) -> Any:
            params = optim.merge(trainable, frozen)
            return caption_loss(model, case, params, {**variables, "batch_stats": stats}, train=True)

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt = tx.update(grads, opt, trainable)
        return optax.apply_updates(trainable, updates), stats, opt, loss, grads

    stats, opt, history = variables["batch_stats"], tx.init(trainable), []
    for i in range(len(case.arrays["out/losses"])):
        trainable, stats, opt, loss, grads = step(trainable, stats, opt)
        history.append(loss)
        if i == 0:
            yield from gradients(optim.merge(grads))
            for key, array in conversion.to_torch({"batch_stats": stats}, table.TABLE).items():
                yield f"out/after1:{key}", array
                yield f"int/{key}", array
            for key, array in conversion.to_torch({"params": optim.merge(trainable, frozen)}, table.TABLE).items():
                yield f"out/param_after1:{key}", array
    yield "out/losses", jnp.stack(history)
