"""Depth: DPT-Hybrid's inverse depth and activations, and the label images made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from prismer_jax import tree
from prismer_jax.experts.depth import Depth, stretch

from .case import LABEL_IMAGE, Case, Outputs
from .photos import begin


def depth(case: Case) -> Outputs:
    """Runs the network on a normalised input (`x`), or on a photo (`image`)."""
    expert = Depth()
    variables, x = begin(case, expert)
    yield "tap/x", rearrange(x, "b h w c -> b c h w")
    run = jax.jit(lambda *args: expert.module.apply(*args, mutable=["intermediates"]))
    inverse_depth, state = run(variables, x)
    yield "out/depth", inverse_depth
    for name, tap in tree.flatten(state["intermediates"]).items():
        yield f"tap/{name.removesuffix('/0')}", jnp.moveaxis(tap, -1, 1) if tap.ndim == 4 else tap
    stretched = jax.device_get(stretch(inverse_depth))
    for name, (width, height) in case.config["original_size_wh"].items():
        label = expert.finish({"depth": stretched[int(name.removeprefix("image") or 0)]}, (height, width), {})
        yield f"out/{name}", label.map[..., 0], LABEL_IMAGE
