"""BLIP-2's golden case with T5."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax import decode, tree
from prismer_jax.models.blip2 import losses
from prismer_jax.towers.t5 import bucket_table

from .blip2 import BEAMS, gradients, image_side, images, mean, model_of, shown, texts, variables_of
from .case import Case, Outputs
from .nanovlm import columns


@functools.partial(jax.jit, static_argnums=0)
def apply(model: Any, variables: Any, batch: Any) -> Any:
    """Returns the projected queries, the encoder's states, the decoder's and the logits, and intermediates."""

    def read(model: Any, batch: Any) -> Any:
        queries = model.encode(batch)
        x = jnp.concatenate([queries, model.decoder.embed(batch["text"])], axis=1)
        real = jnp.pad(batch["mask_input"], ((0, 0), (queries.shape[1], 0)), constant_values=True)
        return queries, model.decoder.encode(x, real), real

    result, state = model.apply(variables, batch, method=read, mutable=["intermediates"])
    return *result, tree.flatten(state["intermediates"])


def stage2(case: Case) -> Outputs:
    """Runs the model with T5: buckets of distances, both stacks, loss, gradients, beams and answers."""
    for name, both_sides in (("encoder", True), ("decoder", False)):
        yield f"tap/rel_bucket_{name}[-200..200]", np.pad(bucket_table(both_sides), 72, mode="edge")
    model = model_of(case)
    variables = variables_of(case, model)
    ids, mask = case.arrays["int/train_input_ids"], case.arrays["int/train_input_mask"]
    written, real = case.arrays["int/train_output_ids"], case.arrays["int/train_output_mask"]
    image = images(case)
    projected, states, seen, taps = apply(model, variables, {"image": image, **texts(ids, mask)})
    yield "int/attention_mask", seen.astype(np.int32)
    yield from image_side(projected, taps)
    yield "tap/t5_encoder_out", states
    both = texts(np.concatenate([ids, written], axis=1), np.concatenate([mask, real], axis=1))
    both["mask_ar"] = both["mask_ar"] * (jnp.arange(both["text"].shape[1]) >= ids.shape[1])
    weights = jnp.asarray(both["mask_ar"] * both["mask_input"], jnp.float32)
    batch = {"image": image, **both, "mask_loss": weights}
    yield "int/labels", np.where(real > 0, written, -100).astype(np.int32)
    check = columns(real, 1, case.manifest["tolerance"])

    def loss(params: Any) -> tuple[jax.Array, Any]:
        forward = functools.partial(model.apply, {"params": params}, mutable=["intermediates"])
        found: dict[str, Any] = {}

        def noted(batch: Any, method: str) -> jax.Array:
            found["logits"], found["taps"] = forward(batch, method=method)
            return found["logits"]

        return mean(losses.stage2(noted, batch)), (found["logits"], tree.flatten(found["taps"]["intermediates"]))

    (value, (logits, taps)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    yield "out/logits", logits[:, ids.shape[1] :], check
    yield "tap/t5_decoder_out", taps["written/0"][:, ids.shape[1] :], check
    yield "out/loss", value
    yield from gradients(case, model, grads)
    yield from captions(case, model, variables, image)


def captions(case: Case, model: Any, variables: Any, image: jax.Array) -> Outputs:
    """Writes captions and answers; a sequence begins with the start, which counts in its length."""
    prompt = np.repeat(case.arrays["int/prompt_ids"], len(image), axis=0)
    asked = texts(case.arrays["int/vqa_ids"], case.arrays["int/vqa_mask"])
    asks = {"image": image, **texts(prompt, np.ones_like(prompt))}
    generate = functools.partial(decode.generate, model, variables, eos=case.config["t5"]["eos_token_id"], pad=0)
    start = np.zeros((len(image), 1), np.int32)
    vqa = dict(batch={"image": image, **asked}, max_new=10, length_penalty=-1.0)
    for name, settings in {**BEAMS, "greedy": dict(method="greedy"), "vqa": vqa}.items():
        beams = {} if name == "greedy" else dict(num_beams=5)
        options = {"batch": asks, "max_new": 30, "min_new": 1, "length": "start", **beams, **settings}
        tokens, scores = generate(options.pop("batch"), **options)
        yield f"out/{name}_ids", shown(tokens, start, case.arrays[f"out/{name}_ids"])
        if name != "greedy":
            yield f"out/{name}_scores", scores.reshape(-1)
