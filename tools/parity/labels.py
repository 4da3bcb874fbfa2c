"""The golden case of label maps: from files to what the stems resize, with the official tables."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from prismer_jax import labels, pp
from prismer_jax.models.prismer.model import normalize
from prismer_jax.towers import label_lookup
from prismer_jax.towers.stem import resize_ids
from prismer_jax.weights import label_tables

from .case import Case, Outputs

TABLES = "data/label_embeddings"  # beside the folder of cases


def label_process(case: Case) -> Outputs:
    """Yields scaled maps, looked-up maps at full resolution, the tables, and the resizing before them."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tables.npz"
        label_tables.convert(case.folder.parent.parent / TABLES, file)
        tables = label_tables.load(file)
    for name, expert in (("coco", "seg_coco"), ("ade", "seg_ade"), ("detection", "obj_detection")):
        yield f"out/table_{name}", tables[expert][:-1]
    yield "out/table_background", tables["ocr_detection"][-1]

    device_tables = jax.tree.map(jnp.asarray, tables)
    classes, words = labels.no_classes(), np.zeros((labels.MAX_IDS, labels.FEATURES), np.float32)
    classes[case["obj_class_ids"][:, 0]] = case["obj_class_ids"][:, 1]
    words[: len(case["ocr_features"])] = case["ocr_features"]
    side = {labels.CLASSES_KEY: jnp.asarray(classes[None]), labels.WORDS_KEY: jnp.asarray(words[None])}

    def stem_input(expert: str, label: np.ndarray) -> Any:
        """Returns what the model makes of a map [h,w,c] before its stem resizes it: [c,h,w]."""
        features = label_lookup.features(expert, jnp.asarray(label[None]), side, device_tables)
        if labels.EXPERTS[expert].storage == "ids":
            features = resize_ids(*features, label.shape[:2])  # to the same size: nothing but the lookup
        return rearrange(features, "1 h w c -> c h w")

    for name in ("depth", "normal", "edge", "depth_flat"):
        yield f"out/{name}", stem_input(name.removesuffix("_flat"), rearrange(case[f"{name}_u8"], "c h w -> h w c"))
    for name, expert, ids in (
        ("seg_coco", "seg_coco", case["seg_coco"]),
        ("seg_ade", "seg_ade", case["seg_ade"]),
        ("obj_detection_label", "obj_detection", case["obj_instance"]),
        ("ocr_detection", "ocr_detection", case["ocr_label"]),
    ):
        yield f"out/{name}", stem_input(expert, ids[..., None])
    for name in ("obj", "ocr"):
        expert = f"{name}_detection"
        yield f"out/{name}_background_only", stem_input(expert, labels.blank(expert, *case["obj_instance"].shape))
    yield "out/obj_detection_instance", case["obj_instance"][None]

    size, up = (case.config["transform_resolution"][name] for name in ("image", "image_up"))
    example = {f"labels/{name}": np.atleast_3d(case[f"transform_{name}"]) for name in ("depth", "seg_coco", "normal")}
    example["image"] = case["transform_image"]
    resized = pp.build(f"resize({size}, {case.config['label_resolution']})")(example, np.random.default_rng(0))
    yield "out/transform_rgb", rearrange(normalize(jnp.asarray(resized["image"][None])), "1 h w c -> c h w")
    for name, unit in (("depth", 255), ("normal", 255), ("seg_coco", 1)):
        label = rearrange(resized[f"labels/{name}"], "h w c -> c h w")
        yield f"out/transform_{name}", label if unit == 1 else label.astype(np.float32) / unit
    enlarged = pp.build(f"resize({up})")({"image": case["transform_image_up"]}, np.random.default_rng(0))
    yield "out/transform_rgb_up", rearrange(normalize(jnp.asarray(enlarged["image"][None])), "1 h w c -> c h w")
