"""Runs golden cases and says how far this code is from them: python -m tools.parity DIR [--case GLOB] [--verbose].

A case is a folder with manifest.json (a state dict's keys and shapes, a rule that fills it, all sizes) and io.npz
(inputs, outputs and intermediate activations of the reference). One line a case: NAME  max_rel_err  ok|FAIL. Every
stored output must be compared, integers must be equal; exit status 1 on any FAIL.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable

import jax
import numpy as np

from prismer_jax import config, runtime
from prismer_jax.errors import UserError, nearest
from prismer_jax.files import storage

from . import (
    blip2,
    blip2_data,
    blip2_t5,
    depth,
    detection,
    edge,
    labels,
    nanovlm,
    nanovlm_data,
    normal,
    ocr,
    paligemma,
    paligemma_data,
    prismer,
    segmentation,
)
from .case import Case, Check, Mismatch, Outputs, index_of, relative

# The first pattern that fits a case's name says what runs it.
RUNNERS: list[tuple[str, Callable[[Case], Outputs]]] = [
    ("blip2_opt_tiny", blip2.stage2),
    ("blip2_t5_tiny", blip2_t5.stage2),
    ("blip2_stage1_tiny", blip2.stage1),
    ("blip2_pos_embed_interp", blip2.positions),
    ("eva_vit_g_manifest", blip2.vision_keys),
    ("blip2_hf_*_manifest", blip2.hugging_face_keys),
    ("blip2_*_manifest", blip2.lavis_keys),
    ("pos_embed_interp", prismer.positions),
    ("post_label_process", labels.label_process),
    ("expert_depth*", depth.depth),
    ("expert_edge*", edge.edge),
    ("expert_normal*", normal.normal),
    ("expert_objdet*", detection.detection),
    ("objdet_labels", detection.instances),
    ("expert_seg*", segmentation.segmentation),
    ("expert_ocr_post", ocr.words),
    ("expert_ocr*", ocr.network),
    ("clip_text", ocr.text),
    ("nanovlm_tiny", nanovlm.head),
    ("nanovlm_preprocess", nanovlm_data.preprocessing),
    ("nanovlm_train", nanovlm.training),
    ("nanovlm_backbone_*", nanovlm.backbones),
    ("nanovlm_*_manifest", nanovlm.keys),
    ("nanovlm_v01_tiny", nanovlm.v01),
    ("blip2_preprocess", blip2_data.images),
    ("paligemma_pt_*_manifest", paligemma.keys),
    ("paligemma_pp_image", paligemma_data.images),
    ("paligemma_pp_text", paligemma_data.texts),
    ("paligemma_segmentation", paligemma_data.masks),
    ("paligemma*_tiny", paligemma.tiny),
    ("prismer*_train", prismer.prismer_train),
    ("prismer*", prismer.prismer),
]


def run_case(case: Case, verbose: bool = False) -> tuple[float, str]:
    """Returns (largest relative error, why it fails or '')."""
    runner = next((r for pattern, r in RUNNERS if fnmatch.fnmatchcase(case.name, pattern)), None)
    if runner is None:
        return np.inf, "no runner knows this case"
    stored = {name: index_of(name) for name in case.arrays if not name.startswith(("in/", "alt/"))}
    tolerance = case.manifest["tolerance"]
    usual = {False: Check(relative, tolerance), True: Check(relative, case.manifest.get("tap_tolerance", tolerance))}
    own = case.manifest.get("array_tolerance", {})
    left, errors, beyond = dict(stored), {}, {}
    try:
        for base, array, *check in runner(case):
            check = check[0] if check else usual[base.startswith("tap/")]
            for name in [name for name, (b, _) in left.items() if b == base]:
                errors[name] = check.measure(np.asarray(array)[left.pop(name)[1]], case.arrays[name])
                if errors[name] > (allowed := own.get(name, check.tolerance)):
                    beyond[name] = allowed
                if verbose:
                    print(f"    {name}  {errors[name]:.2e}", flush=True)
    except (Mismatch, UserError) as error:
        return np.inf, str(error)
    if missing := [name for name in left if not name.startswith("int/")]:  # integers may be inputs
        return np.inf, f"not computed: {', '.join(missing)}"
    if beyond:
        worst = max(beyond, key=lambda name: errors[name])
        return errors[worst], f"{worst} beyond {beyond[worst]:.0e}"
    return max(errors.values(), default=0.0), ""


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.parity", description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=storage.on_disk, help="folder of golden cases")
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
