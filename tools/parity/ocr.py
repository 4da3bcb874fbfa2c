"""Words: CharNet's maps and activations, what is read in maps, CLIP's text features and their projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax import tree
from prismer_jax.experts.ocr import clip_text, hourglass, reading
from prismer_jax.experts.ocr import expert as ocr
from prismer_jax.experts.ocr.lexicon import Lexicon
from prismer_jax.weights import label_tables, rules

from .case import Case, Outputs, fill

# Taps of the reference, and the modules whose output they are.
TAPS = {
    "pre": "start",
    "hg0.up_1": "hourglass_0/same_1",
    "hg0.low_2.low_2.low_2": "hourglass_0/inner/inner/inner_1",
    "hg0": "hourglass_0",
    "hg1": "hourglass_1",
    "word_feat": "word/shared",
}
STORED = {"word_fg": "word_score", "char_fg": "char_score", "char_cls": "char_class"}


def _variables(case: Case, module: nn.Module, table: rules.Table, *inputs: jax.Array) -> dict:
    shapes = tree.flatten(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    arrays = rules.from_torch(case.state(), table, shapes, case.name)
    return tree.unflatten({name: jnp.asarray(make()) for name, make in arrays.items()})


def network(case: Case) -> Outputs:
    """Runs the network on a normalised input (`x`), or on a photo (`image`)."""
    expert, module = ocr.OcrDetection(), hourglass.CharNet()
    if "in/image" in case.arrays:
        x = expert.normalize(jnp.asarray(expert.prepare(case["image"])["image"][None]))
        yield "tap/x", _nchw(x)
    else:
        x = rearrange(jnp.asarray(case["x"]), "b c h w -> b h w c")
    variables = _variables(case, module, hourglass.TABLE, x)

    def tapped(part: nn.Module, method: str) -> bool:
        return "/".join(part.path) in TAPS.values()

    run = jax.jit(lambda *args: module.apply(*args, capture_intermediates=tapped, mutable=["intermediates"]))
    maps, state = run(variables, x)
    taps = tree.flatten(state["intermediates"])
    for name, path in TAPS.items():
        tap = taps[f"{path}/__call__/0"]
        yield f"tap/{name}", _nchw(jax.nn.relu(tap) if name == "word_feat" else tap)
    for name, ours in STORED.items():
        yield f"out/logit_{name}", _nchw(maps[ours])
        yield f"out/pred_{name}", _nchw(jax.nn.softmax(maps[ours]))
    for name, ours in (("word_tblr", "word_sides"), ("word_orient", "word_angle"), ("char_tblr", "char_sides")):
        yield f"out/pred_{name}", _nchw(maps[ours])


def _nchw(x: jax.Array) -> jax.Array:
    return rearrange(x, "b h w c -> b c h w")


def words(case: Case) -> Outputs:
    """Reads the words of drawn maps."""
    maps = {"word_score": case["pred_word_fg"], "char_score": case["pred_char_fg"]}
    maps |= {"word_angle": case["pred_word_orient"], "char_class": np.moveaxis(case["pred_char_cls"], 0, -1)}
    maps |= {f"{kind}_sides": np.moveaxis(case[f"pred_{kind}_tblr"], 0, -1) for kind in ("word", "char")}
    width, height = case["original_wh"].tolist()
    words, characters = reading.find(maps, (height, width))
    for name, boxes in (("word", words), ("char", characters)):
        corners = rearrange(boxes.corners, "n k c -> n (k c)")
        yield f"tap/{name}_bboxes_after_nms", np.concatenate([corners, boxes.scores[:, None]], 1)
    yield "tap/char_class", characters.classes.argmax(1)
    yield "tap/char_class_score", characters.classes.max(1)
    spelt = reading.spell(words, characters)
    yield "tap/text_before_filter", np.array([word.text for word in spelt])
    yield "tap/text_score_before_filter", np.array([word.text_score for word in spelt])
    lexicon = Lexicon.read(ocr.find(case.folder.parent.parent / "data" / "ocr", ocr.LEXICON))
    readings = reading.words_of(maps, (height, width), lexicon)
    yield "out/word_bbox", np.stack([word.box.reshape(-1) for word in readings])
    yield "out/word_bbox_score", np.array([word.score for word in readings])
    yield "out/text", np.array([word.text for word in readings])
    yield "out/text_score", np.array([word.text_score for word in readings])
    ids, texts = reading.label_map(readings, (height, width))
    yield "out/mask", ids[..., 0]
    yield "out/labels", np.array(texts)


def text(case: Case) -> Outputs:
    """Yields CLIP's features of token ids, and stored features projected by the official and a made-up PCA."""
    module, tokens = clip_text.ClipText(), jnp.asarray(case["tokens"])
    variables = _variables(case, module, clip_text.TABLE, tokens)
    features, state = jax.jit(lambda *args: module.apply(*args, mutable=["intermediates"]))(variables, tokens)
    taps = tree.flatten(state["intermediates"])
    yield "tap/embed", taps["embedded/0"]
    for i, block in enumerate(taps["blocks/out/0"]):
        yield f"tap/resblocks.{i}", block
    yield "tap/ln_final", taps["normed/0"]
    yield "out/features", features
    salt = case.manifest["salt"]
    projections = {
        "pca64": label_tables.pca(case.folder.parent.parent / "data" / "label_embeddings" / label_tables.PCA),
        "pca64_synthetic": {
            "mean": fill(f"{salt}pca_synthetic.mean_", (768,), 1.0),
            "components": fill(f"{salt}pca_synthetic.components_", (64, 768), 1.0),
        },
    }
    reducer = clip_text.WordFeatures(module)
    for name, arrays in projections.items():
        params = {key: jnp.asarray(array, jnp.float32) for key, array in arrays.items()}
        yield (
            f"out/{name}",
            reducer.apply({"params": params}, jnp.asarray(case.arrays["out/features"]), method="reduce"),
        )
