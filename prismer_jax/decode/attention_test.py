"""Attention to the photo's patches: of each family that looks at them, and as the captioner tells it."""

import jax
import numpy as np
import pytest

from prismer_jax import models
from prismer_jax.batch import prompts
from prismer_jax.caption_test import write_model
from prismer_jax.captioner import Captioner
from prismer_jax.decode.attention import photo_attention, words_of
from prismer_jax.pp import tokenizer as tokenizers

SMALL = dict(name="prismer", variant="tiny", experts=["depth"], image_size=32, width=32, layers=1, heads=2, latents=4)
SMALL |= dict(resampler_layers=1, resampler_heads=2)
SMALL["decoder"] = dict(width=32, layers=2, heads=2, mlp_dim=32, vocab_size=640, max_positions=40)
VISION = dict(image_size=32, patch_size=8, width=16, layers=1, heads=2, mlp_dim=16)
LANGUAGE = dict(width=16, layers=2, heads=2, kv_heads=1, mlp_dim=16, vocab_size=64)


def batch_of(side, text):
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    text = np.array([text], np.int32)
    return {"image": image, **prompts(text, np.ones_like(text, bool))}


def looked(model, batch, tokens):
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init_variables, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.abs(0.3 * rng.standard_normal(x.shape)).astype(x.dtype), shapes)
    return variables, photo_attention(model, variables, batch, np.array([tokens], np.int32))


FAMILIES = {
    "prismer": SMALL,
    "nanovlm": dict(name="nanovlm", vision=VISION, language=LANGUAGE, shuffle=2),
    "paligemma": dict(name="paligemma", vision=VISION, language=LANGUAGE),
}


@pytest.mark.parametrize(("family", "grid"), [("prismer", 2), ("nanovlm", 2), ("paligemma", 4)])
def test_each_token_looks_at_the_patches(family, grid):
    model = models.build(**FAMILIES[family])
    batch = batch_of(32, [5, 6, 7])
    variables, whole = looked(model, batch, [8, 9, 10])
    assert whole.shape == (1, 3, grid, grid)
    shares = np.asarray(whole).sum((-1, -2))
    assert ((shares > 0.05) & (shares < 1)).all()  # of the experts' latents, or the text, is the rest
    # What chose a token is what was read before it: later tokens change nothing, earlier ones do.
    later = photo_attention(model, variables, batch, np.array([[8, 11, 12]], np.int32))
    np.testing.assert_allclose(later[:, :2], whole[:, :2], atol=1e-6)
    assert np.abs(later[:, 2] - whole[:, 2]).max() > 1e-7


def test_the_weights_are_those_of_the_patches_in_order():
    """Of two layers, with what is not of the photo: latents behind its patches, and the text behind its tokens."""
    cross = np.zeros((2, 1, 1, 3, 8), np.float32)  # four patches, four latents
    cross[0, ..., 1, 2], cross[1, ..., 1, 6] = 0.5, 0.25
    kept = {"decoder": {"layers": {"cross_attention": {"weights": [cross]}}}}
    weights, side = models.build(**SMALL).photo_attention(kept)
    np.testing.assert_array_equal(weights[0, 1], [0, 0, 0.25, 0, 0, 0, 0.125, 0])
    assert side == 2
    own = np.zeros((1, 1, 1, 18, 18), np.float32)  # sixteen tokens, two columns of text
    own[..., 17, 6] = 1
    seen, side = models.build(**FAMILIES["paligemma"]).photo_attention({"language": {"blocks": {"weights": [own]}}})
    assert (seen.shape, side) == ((1, 2, 18), 4)
    assert seen[0, 1, 6] == seen.sum() == 1


def test_families_that_look_at_no_patches_say_nothing():
    tiles = models.build("nanovlm", vision=VISION, language=LANGUAGE, shuffle=2, image_token=3)
    assert tiles.photo_attention({}) is None
    assert photo_attention(object(), {}, {}, np.zeros((1, 1), np.int32)) is None


def test_ids_are_gathered_into_words():
    tokenizer = tokenizers.load("scenes")
    ids = [*tokenizer.encode("a red extraordinarily tall cone"), tokenizer.eos, 9, 9]
    words = words_of(tokenizer, ids)
    assert [word for word, _ in words] == ["a", "red", "extraordinarily", "tall", "cone"]
    assert [place for _, places in words for place in places] == list(range(len(ids) - 3))
    assert max(len(places) for _, places in words) > 2
    assert words_of(tokenizer, [tokenizer.eos]) == []


def test_the_captioner_tells_where_it_looked(tmp_path):
    look = "labels_for('depth')|decode|resize(32, 48)|caption_prompt|tokenize(3)"
    tasks = {"caption": dict(pp=look, decode=dict(method="greedy", max_new=6))}
    model = Captioner(write_model(tmp_path / "model", tasks, experts=["depth"]))
    photo = {"id": "a", "image": np.random.default_rng(1).integers(0, 256, (40, 32, 3), np.uint8)}
    (plain,) = model.ask([photo], task="caption")
    (row,) = model.ask([photo], task="caption", attention=True)
    assert plain == {key: row[key] for key in ("image", "captions", "scores")}
    assert [word for word, _ in row["attention"]] == plain["captions"][0].split() != []
    assert all(seen.shape == (2, 2) and 0 < seen.sum() < 1 for _, seen in row["attention"])
