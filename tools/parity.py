"""Runs golden cases and says how far this code is from them: python -m tools.parity DIR [--case GLOB] [--verbose].

A case is a folder with manifest.json (a state dict's keys and shapes, a rule that fills it, all sizes) and io.npz
(inputs, outputs and intermediate activations of the reference). One line a case: NAME  max_rel_err  ok|FAIL. Every
stored output must be compared, integers must be equal; exit status 1 on any FAIL.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from prismer_jax import config, decode, losses, optim, runtime, tree
from prismer_jax.convert import prismer as convert
from prismer_jax.convert import rules
from prismer_jax.errors import UserError, nearest, run_main
from prismer_jax.labels import EXPERTS, FEATURES, MAX_IDS
from prismer_jax.models.layers import resize_positions
from prismer_jax.models.prismer import FREEZE, Prismer, build, label_tables
from prismer_jax.models.roberta import PAD
from tools import parity_labels

Outputs = Iterator[tuple[str, Any]]


class Mismatch(Exception):
    """What differs cannot be said as a relative error: keys, frozen parameters, ..."""


class Case:
    """One folder of golden numbers."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.name = folder, folder.name
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
            stored = folder / "io.npz"
            self.arrays = dict(np.load(stored, allow_pickle=False)) if stored.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a golden case ({error}).") from None
        self.config = self.manifest.get("config", {})

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[f"in/{name}"]

    def inputs(self, pattern: str) -> list[str]:
        """Returns what stands for the group in the names of inputs that match `pattern`, as 'caption0'."""
        return sorted(m[1] for m in (re.fullmatch(f"in/{pattern}", name) for name in self.arrays) if m)

    def wants(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.arrays)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the weights: a function of the tensors' names alone (the rule of golden/README.md)."""
        gains, salt, state = self.manifest["gain"], self.manifest["salt"], {}
        for key, entry in self.manifest["tensors"].items():
            if "tied_to" not in entry and entry["dtype"].startswith("float"):
                gain = next((g for pattern, g in gains.items() if re.search(pattern, key)), 1.0)
                state[key] = _fill(salt + key, tuple(entry["shape"]), gain)
            elif "tied_to" not in entry:
                state[key] = self.arrays.get(f"int/{key}", np.zeros(entry["shape"], entry["dtype"]))
        tied = {k: state[e["tied_to"]] for k, e in self.manifest["tensors"].items() if "tied_to" in e}
        return state | tied


def _fill(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(key.encode()))  # the legacy generator: its stream is frozen
    noise, leaf = rng.standard_normal(int(np.prod(shape))).reshape(shape), key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        x = 0.5 + rng.random_sample(shape)
    elif leaf == "running_mean":
        x = 0.1 * noise
    elif len(shape) <= 1:
        x = (1.0 if leaf in ("weight", "gamma", "scale") else 0.0) + 0.1 * noise
    else:
        x = gain * noise / np.sqrt(np.prod(shape[1:]))
    return x.astype(np.float32)


# ------------------------------------------------------------------------------------------------ positions


def positions(case: Case) -> Outputs:
    for pair in case.config["pairs"]:
        new = int(pair.split("->")[1])
        name = "pe_" + pair.replace("->", "to")
        yield f"out/{name}", resize_positions(case[name], (new, new))


# ------------------------------------------------------------------------------------------------ Prismer


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
    """The model converts to exactly the keys and shapes of the manifest, and counts as many parameters."""
    shapes = convert.shapes_of(model)
    ours = rules.key_shapes(convert.TABLE, shapes)
    theirs = {key: tuple(entry["shape"]) for key, entry in case.manifest["tensors"].items()}
    if wrong := [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]:
        raise Mismatch(f"keys or shapes differ: {rules.grouped(sorted(wrong))}")
    count = sum(int(np.prod(leaf.shape)) for leaf in shapes.values() if jnp.issubdtype(leaf.dtype, jnp.floating))
    if count != case.config.get("n_parameters", count):
        raise Mismatch(f"{count} parameters instead of {case.config['n_parameters']}")
    for mode, trainable in case.config.get("n_trainable", {}).items():
        parts, _ = optim.split(tree.unflatten(shapes)["params"], FREEZE[mode])
        if (count := sum(int(np.prod(leaf.shape)) for leaf in parts.values())) != trainable:
            raise Mismatch(f"{mode} trains {count} parameters instead of {trainable}")
    for mode, frozen in case.config.get("frozen", {}).items():
        _, parts = optim.split(tree.unflatten(shapes)["params"], FREEZE[mode])
        keys = rules.keys_of((f"params/{name}" for name in parts), convert.TABLE, shapes)
        if wrong := keys ^ set(frozen):
            raise Mismatch(f"{mode} freezes other parameters: {rules.grouped(sorted(wrong))}")


def vision_inputs(case: Case) -> dict[str, Any]:
    """Returns the arguments of Prismer.encode_features: id maps stay ids, with the features of each id beside them."""
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
    variables = jax.tree.map(jnp.asarray, convert.from_torch(case.state(), model, case.name))
    variables["tables"] = label_tables(model.experts, model.classes)
    for key, array in convert.to_torch(variables).items():
        if key.endswith("num_batches_tracked"):
            yield f"int/{key}", array
    inputs = vision_inputs(case)

    def run(method: str, *args: Any, **kwargs: Any) -> Any:
        return _apply(model, method, variables, *args, **kwargs)

    encoded, kept = run("encode_features", **inputs)
    yield "out/encoder", encoded
    yield from encoder_taps(tree.flatten(kept["intermediates"]["encoder"]), model, case.config["expert_order"][1:])
    if case.wants("out/logits"):
        text = jnp.asarray(case["caption_ids"], jnp.int32)
        logits, kept = run("decode", encoded, text)
        yield "out/logits", logits
        yield "out/logits_argmax", logits.argmax(-1)
        yield from decoder_taps(tree.flatten(kept["intermediates"]["decoder"]))
        loss = losses.cross_entropy(logits, text, caption_mask(case, case.config["prompt_length"]))
        yield "out/caption_loss", loss
        yield "out/caption_loss_mean", loss.mean()
        yield "out/caption_loss_noprefix", losses.cross_entropy(logits, text, caption_mask(case, 0))
    if case.wants("out/vqa_loss"):
        text = jnp.asarray(np.concatenate([case["vqa_question_ids"], case["vqa_answer_ids"]], 1), jnp.int32)
        mask = (text != PAD).at[:, : case["vqa_question_ids"].shape[1]].set(False).astype(jnp.float32)
        logits, _ = run("decode", encoded, text)
        yield "out/vqa_logits", logits
        yield "out/vqa_loss", losses.cross_entropy(logits, text, mask)
        # What the training does: the weight of an answer is in its mask.
        weighted = losses.cross_entropy(logits, text, mask * case["vqa_weights"][:, None])
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
    """Mean caption loss; in training (with dropout 0) also the updated BatchNorm statistics."""
    variables = {**variables, "params": params}
    mutable = ["batch_stats"] if train else []
    encoded, stats = model.apply(
        variables, **vision_inputs(case), train=train, method="encode_features", mutable=mutable
    )
    text = jnp.asarray(case["caption_ids"], jnp.int32)
    logits = model.apply(variables, encoded, text, train, method="decode")
    loss = losses.cross_entropy(logits, text, caption_mask(case, case.config["prompt_length"])).mean()
    return (loss, stats["batch_stats"]) if train else loss


def gradients(grads: Any) -> Outputs:
    for key, array in convert.to_torch({"params": grads}).items():
        yield f"out/grad:{key}", array
    yield "out/grad_global_norm", jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))


def encoder_taps(kept: Mapping[str, jax.Array], model: Prismer, order: Sequence[str]) -> Outputs:
    yield "tap/stem_rgb", rearrange(kept["tokens_rgb/0"], "b h w d -> b d h w")
    for domain in {EXPERTS[expert].stem for expert in model.experts}:
        yield f"tap/stem_{domain}", rearrange(kept[f"tokens_{domain}/0"], "b h w d -> b d h w")
    if model.experts:
        tokens = dict(zip(model.experts, jnp.split(kept["tokens/0"], len(model.experts), axis=1), strict=True))
        yield "tap/resampler_in", rearrange([tokens[e] for e in order], "e b n d -> (e n) b d")
        yield "tap/resampler", rearrange(kept["latents/0"], "b n d -> n b d")
    yield "tap/ln_pre", rearrange(kept["normed/0"], "b n d -> n b d")
    yield "tap/vit0_after_adaptor", rearrange(kept["blocks/after_adaptor/0"][0], "b n d -> n b d")


def decoder_taps(kept: Mapping[str, jax.Array]) -> Outputs:
    yield "tap/dec_embeddings", kept["embeddings/0"][:, 0]
    yield "tap/dec_hidden", kept["hidden/0"][:, 0]
    for i, layer in enumerate(kept["layers/after_adaptor/0"]):
        yield f"tap/dec_layer{i}_after_adaptor", layer[:, 0]


def generation(case: Case, model: Prismer, variables: Any, encoded: jax.Array) -> Outputs:
    for name in case.inputs(r"gen_(\w+)_ids"):
        settings = dict(case.config["generate"][name])
        lengths = {"max_len": settings.pop("max_length"), "min_len": settings.pop("min_length")}
        prompt = jnp.asarray(case[f"gen_{name}_ids"], jnp.int32)
        beam = tuple(sorted({**lengths, **settings}.items()))
        tokens, scores = _decode(model, decode.beam_search, beam, variables, encoded, prompt)
        yield _sequences(case, f"out/gen_{name}_beam3_sequences", tokens[:, 0])
        yield f"out/gen_{name}_beam3_scores", scores[:, 0]
        if case.wants(f"out/gen_{name}_greedy"):
            tokens, _ = _decode(model, decode.greedy, tuple(sorted(lengths.items())), variables, encoded, prompt)
            yield _sequences(case, f"out/gen_{name}_greedy_sequences", tokens[:, 0])


def _sequences(case: Case, name: str, tokens: jax.Array) -> tuple[str, jax.Array]:
    """The reference's arrays end with their longest sequence, ours always have max_len columns: the rest are pads."""
    width = case.arrays[name].shape[1]
    return name, tokens[:, :width] if (tokens[:, width:] == PAD).all() else tokens


def ranking(case: Case, model: Prismer, variables: Any, encoded: jax.Array) -> Outputs:
    for name in case.inputs(r"(\w+)_rank_start_ids"):
        prompt = jnp.asarray(case[f"{name}_rank_start_ids"], jnp.int32)
        answers = jnp.asarray(case[f"{name}_rank_answers"], jnp.int32)
        logits = _apply(model, "decode", variables, encoded, prompt)[0][:, -1]
        yield f"out/{name}_rank_prob_first", jax.nn.softmax(logits)[:, answers[:, 0]]
        settings = (("k", case.config["k_test"]), ("label_smoothing", case.config["label_smoothing"]))
        best, candidates, scores = _decode(model, decode.rank, settings, variables, encoded, prompt, answers)
        yield f"out/{name}_rank_topk_ids", candidates
        yield f"out/{name}_rank_log_probs", scores
        yield f"out/{name}_rank_max_ids", best


def prismer_train(case: Case) -> Outputs:
    """Three steps of AdamW with frozen parts and BatchNorm in training mode."""
    model = model_of(case, dropout=case.config["dropout"])
    check_keys(case, model)
    variables = jax.tree.map(jnp.asarray, convert.from_torch(case.state(), model, case.name))
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
            for key, array in convert.to_torch({"batch_stats": stats}).items():
                yield f"out/after1:{key}", array
                yield f"int/{key}", array
            for key, array in convert.to_torch({"params": optim.merge(trainable, frozen)}).items():
                yield f"out/param_after1:{key}", array
    yield "out/losses", jnp.stack(history)


# ------------------------------------------------------------------------------------------------ all cases

# The first pattern that fits a case's name says what runs it.
RUNNERS: list[tuple[str, Callable[[Case], Outputs]]] = [
    ("pos_embed_interp", positions),
    ("post_label_process", parity_labels.label_process),
    ("prismer*_train", prismer_train),
    ("prismer*", prismer),
]


def index_of(name: str) -> tuple[str, tuple[slice, ...]]:
    """Splits 'out/x[:,::4]' into the array's name and the index that was applied to it before storing."""
    base, _, index = name.partition("[")
    parts = index.rstrip("]").split(",") if index else []
    return base, tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)


def compare(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns ||a-b|| / ||b||, infinity for another shape, and for integers 0 or infinity."""
    if ours.shape != theirs.shape:
        return np.inf
    if not np.issubdtype(theirs.dtype, np.floating):
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    difference, norm = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
    error = difference / norm if norm else difference
    return float(error) if np.isfinite(error) else np.inf


def run_case(case: Case, verbose: bool = False) -> tuple[float, str]:
    """Returns (largest relative error, why it fails or '')."""
    runner = next((r for pattern, r in RUNNERS if fnmatch.fnmatchcase(case.name, pattern)), None)
    if runner is None:
        return np.inf, "no runner knows this case"
    stored = {name: index_of(name) for name in case.arrays if not name.startswith("in/")}
    left, errors = dict(stored), {}
    try:
        for base, array in runner(case):
            for name in [name for name, (b, _) in left.items() if b == base]:
                errors[name] = compare(np.asarray(array)[left.pop(name)[1]], case.arrays[name])
                if verbose:
                    print(f"    {name}  {errors[name]:.2e}", flush=True)
    except (Mismatch, UserError) as error:
        return np.inf, str(error)
    if left:
        return np.inf, f"not computed: {', '.join(left)}"
    worst = max(errors, key=errors.get, default=None)
    if worst is not None and errors[worst] > case.manifest["tolerance"]:
        return errors[worst], f"{worst} beyond {case.manifest['tolerance']:.0e}"
    return max(errors.values(), default=0.0), ""


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.parity", description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=pathlib.Path, help="folder of golden cases")
    parser.add_argument("--case", default="*", help="which cases, a glob")
    parser.add_argument("--verbose", action="store_true", help="one line for every array")
    args = parser.parse_args(argv)
    cases = sorted(path.parent for path in args.folder.glob("*/manifest.json"))
    if not cases:
        raise UserError(f"{args.folder}: holds no golden cases (folders with a manifest.json).")
    chosen = [folder for folder in cases if fnmatch.fnmatchcase(folder.name, args.case)]
    if not chosen:
        raise UserError(
            f"No case in {args.folder} matches {args.case!r}. {nearest(args.case, [c.name for c in cases])}"
        )
    runtime.use_compilation_cache()
    failed = False
    with jax.default_matmul_precision("highest"):
        for folder in chosen:
            error, reason = run_case(Case(folder), args.verbose)
            failed |= bool(reason)
            print(f"{folder.name}  {error:.2e}  {f'FAIL  {reason}' if reason else 'ok'}", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
