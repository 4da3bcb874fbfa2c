"""CLIP's ViT-L in EVA's place: its tokens against a computation of their own, and its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import checkpoint, models, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.blip2 import parts
from prismer_jax.models.blip2.base import DEVIATION, MEAN
from prismer_jax.models.blip2.table import table
from prismer_jax.towers.vit import ViT
from prismer_jax.weights import write
from tools import convert

HEADS, PATCH, SIDE = 3, 14, 3


@pytest.fixture(scope="module")
def clip():
    """A small model, its parameters, and these under LAVIS's names."""
    model, rng = models.build("blip2", variant="tiny_vitL"), np.random.default_rng(0)
    params = {
        name.removeprefix("params/"): rng.standard_normal(leaf.shape).astype(np.float32) / 4
        for name, leaf in conversion.shapes_of(model).items()
    }
    params = tree.unflatten(params)
    return model, params, conversion.to_torch({"params": params}, table(model))


def norm(x, state, key):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * state[f"{key}.weight"] + state[f"{key}.bias"]


def forward(state, image):
    """CLIP's vision transformer (openai/CLIP, clip/model.py) without its last norm, in float64."""
    state = {key.removeprefix("visual_encoder."): x.astype(np.float64) for key, x in state.items() if "visual" in key}
    patches = (
        image.reshape(-1, SIDE, PATCH, SIDE, PATCH, 3).transpose(0, 1, 3, 5, 2, 4).reshape(len(image), SIDE**2, -1)
    )
    kernel = state["conv1.weight"]
    x = patches @ kernel.reshape(len(kernel), -1).T
    token = np.broadcast_to(state["class_embedding"], (len(x), 1, x.shape[-1]))
    x = norm(np.concatenate([token, x], 1) + state["positional_embedding"], state, "ln_pre")
    for layer in range(2):
        own = {k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"transformer.resblocks.{layer}.")}
        packed = norm(x, own, "ln_1") @ own["attn.in_proj_weight"].T + own["attn.in_proj_bias"]
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in np.split(packed, 3, axis=-1))
        logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v).reshape(x.shape)
        x = x + mixed @ own["attn.out_proj.weight"].T + own["attn.out_proj.bias"]
        hidden = norm(x, own, "ln_2") @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"]
        x = x + hidden / (1 + np.exp(-1.702 * hidden)) @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
    return x


def test_clips_tokens_are_those_of_its_formula(clip):
    model, params, state = clip
    image = np.random.default_rng(1).integers(0, 256, (2, 42, 42, 3), np.uint8)
    pixels = (image / 255 - MEAN) / DEVIATION
    tokens = ViT(**model.vision).apply({"params": params["vision"]}, jnp.asarray(pixels, jnp.float32))
    assert tokens.shape == (2, 1 + SIDE**2, 48)
    np.testing.assert_allclose(tokens, forward(state, pixels), rtol=2e-4, atol=2e-4)


def test_clips_files_are_read_without_what_is_not_used(clip, tmp_path):
    """LAVIS's clip_vit_L.pth, and OpenAI's own, which has an encoder of texts, too."""
    _, params, state = clip
    for prefix in ("", "visual."):
        own = {f"{prefix}{k.removeprefix('visual_encoder.')}": x for k, x in state.items() if k.startswith("visual_")}
        unused = ["ln_post.weight", "proj", "transformer.resblocks.23.ln_1.weight"]
        own |= {f"{prefix}{key}": np.ones(48, np.float32) for key in unused}
        own |= {"positional_embedding": np.ones((77, 8), np.float32)} if prefix else {}
        write.torch_file(tmp_path / "clip.pth", own)
        assert parts.vision(tmp_path / "clip.pth").keys() == {k for k in state if k.startswith("visual_")}
    write.torch_file(tmp_path / "queries.pth", {k: x for k, x in state.items() if not k.startswith("visual_")})
    given = ["blip2", "--variant", "tiny_vitL", "--qformer", str(tmp_path / "queries.pth")]
    convert.main([*given, "--vision", str(tmp_path / "clip.pth"), "--output", str(tmp_path / "model")])
    again = checkpoint.load_export(tmp_path / "model")[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_file_without_its_vision_transformer_says_which_it_was_trained_with(clip, tmp_path):
    _, _, state = clip
    queries = {k: x for k, x in state.items() if not k.startswith("visual_")}
    write.torch_file(tmp_path / "queries.pth", queries | {"ln_vision.weight": np.ones(1024, np.float32)})
    with pytest.raises(UserError, match=r"--vision clip_vit_L\.pth"):
        convert.main(["blip2", "--qformer", str(tmp_path / "queries.pth"), "--output", str(tmp_path / "m")])


def test_the_published_sizes_are_clips():
    """Of openai/CLIP's ViT-L/14 without the last block, its norm and its projection: 291 million parameters."""
    vision = models.build("blip2", variant="pretrained_flant5xl_vitL").vision
    shapes = jax.eval_shape(ViT(**vision).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    block = 12 * 1024**2 + 13 * 1024  # attention and MLP, their biases, two norms
    assert count == 23 * block + 3 * 14**2 * 1024 + (257 + 1 + 2) * 1024
