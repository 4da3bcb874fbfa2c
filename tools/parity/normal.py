"""Normals: NNET's estimates at four sizes and activations, and the label images made of them."""

from __future__ import annotations

import jax
import numpy as np
from einops import rearrange

from prismer_jax import tree
from prismer_jax.experts.normal import Normal, colours

from .case import LABEL_IMAGE, Case, Check, Outputs
from .photos import begin


def estimate_check(case: Case) -> Check:
    """Normals by their absolute difference and kappa relative to its largest, as the manifest says.

    The measure is the larger of both, each in units of its own tolerance, times the tolerance.
    """
    tolerance, normals = case.manifest["tolerance"], case.manifest["normals_abs_tolerance"]

    def measure(ours: np.ndarray, theirs: np.ndarray) -> float:
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            return np.inf
        difference = np.abs(ours.astype(np.float64) - theirs).max((0, 2, 3))
        kappa = difference[3] / np.abs(theirs[:, 3]).max()
        return float(max(kappa, difference[:3].max() * tolerance / normals))

    return Check(measure, tolerance)


def normal(case: Case) -> Outputs:
    """Runs the network on a normalised input (`x`), or on a photo (`image`)."""
    expert = Normal()
    variables, x = begin(case, expert)
    yield "tap/x", rearrange(x, "b h w c -> b c h w")
    run = jax.jit(lambda *args: expert.module.apply(*args, mutable=["intermediates"]))
    estimates, state = run(variables, x)
    for name, tap in tree.flatten(state["intermediates"]).items():
        yield f"tap/{name.removeprefix('encoder/').removesuffix('/0')}", rearrange(tap, "b h w c -> b c h w")
    for size, estimate in zip((8, 4, 2, 1), estimates, strict=True):
        yield f"out/out_res{size}", rearrange(estimate, "b h w c -> b c h w"), estimate_check(case)
    normals = np.asarray(colours(estimates[-1]))
    for name, (width, height) in case.config["original_size_wh"].items():
        label = expert.finish({"normal": normals[int(name.removeprefix("image") or 0)]}, (height, width), {})
        yield f"out/{name}", label.map, LABEL_IMAGE
