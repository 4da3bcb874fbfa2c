"""Edges: DexiNed's maps and activations, and the label images made of them."""

from __future__ import annotations

import jax
import numpy as np
from einops import rearrange

from prismer_jax.experts.edge import DOUBLINGS, Edge, strength, to_grey

from .case import LABEL_IMAGE, Case, Outputs
from .photos import begin


def edge(case: Case) -> Outputs:
    """Runs the network on a normalised input (`x`), or on a photo (`image`)."""
    expert = Edge()
    variables, x = begin(case, expert)
    yield "tap/x", rearrange(x, "b h w c -> b c h w")
    run = jax.jit(lambda *args: expert.module.apply(*args, capture_intermediates=True, mutable=["intermediates"]))
    maps, state = run(variables, x)
    for name in DOUBLINGS:
        yield f"tap/{name}", rearrange(state["intermediates"][name]["__call__"][0], "b h w c -> b c h w")
    names = [f"out_{i}" for i in range(1, 7)] + ["block_cat"]
    for name, edges in zip(names, np.moveaxis(maps, -1, 0), strict=True):
        yield f"out/{name}", edges[:, None]
    strengths = np.asarray(strength(maps))
    for name, (width, height) in case.config["original_size_wh"].items():
        index = int(name.removeprefix("image") or 0)
        yield f"out/fused{index}", to_grey(strengths[index]), LABEL_IMAGE
        label = expert.finish({"edge": strengths[index]}, (height, width), {})
        yield f"out/{name}", label.map[..., 0], LABEL_IMAGE
