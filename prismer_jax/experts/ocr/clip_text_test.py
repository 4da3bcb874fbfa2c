import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.experts.ocr import clip_text
from prismer_jax.experts.ocr.clip_text import END, START, ClipText, Tokenizer, WordFeatures
from prismer_jax.experts.ocr.reading import CHARACTERS
from prismer_jax.weights import rules

TINY = ClipText(width=16, layers=2, heads=2, features=12)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(TINY.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))


@pytest.fixture(scope="module")
def tokenizer(shared):
    return Tokenizer(shared / "data/clip/bpe_simple_vocab_16e6.txt.gz")


def test_texts_have_clips_ids(tokenizer):
    # clip.tokenize of openai/CLIP gives these.
    assert tokenizer.encode("a photo of a cat") == [START, 320, 1125, 539, 320, 2368, END]
    assert tokenizer.encode("Hello  World") == [START, 3306, 1002, END]
    assert tokenizer.encode("joe's") == [START, 3305, 568, END]
    assert tokenizer.encode("2023") == [START, 273, 271, 273, 274, END]  # digit by digit


def test_every_text_has_ids(tokenizer):
    assert tokenizer.encode("") == [START, END]
    for text in (CHARACTERS, "É漢字\U0001f600", "\x00\x7f"):
        ids = tokenizer.encode(text)
        assert len(ids) > 2
        assert START not in ids[1:]
        assert END not in ids[:-1]
    assert tokenizer.encode("&amp;lt;") == tokenizer.encode("<")
    # What spells the special tokens is text.
    assert len(tokenizer.encode("<|endoftext|>")) > 3


def test_a_long_text_is_cut_off(tokenizer):
    ids = tokenizer.encode("!x" * 90)
    assert len(ids) == clip_text.CONTEXT
    assert ids[-1] == END


def test_batches_have_few_shapes(tokenizer):
    assert tokenizer.batch(["hotel"]).shape == (1, 8)
    assert tokenizer.batch(["hotel"] * 5).shape == (8, 8)
    assert tokenizer.batch(["hotel", "9" * 12]).shape == (2, 16)
    assert tokenizer.batch(["9" * 100]).shape == (1, 77)
    batch = tokenizer.batch(["hotel", "open", "nice"])
    assert batch[1].tolist() == [*tokenizer.encode("open"), *[0] * 5]
    assert batch[3].tolist() == [0] * 8


def test_files_that_are_no_merges_are_one_line(shared, tmp_path):
    path = tmp_path / "bpe.gz"
    with pytest.raises(UserError, match=r"bpe\.gz: cannot be read as CLIP's merges .* Fetch it again"):
        Tokenizer(path)
    whole = (shared / "data/clip/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    for damaged in (b"", b"no gzip", whole[:5000], whole[:5000] + b"\xff" * 100 + whole[5100:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="Fetch it again"):
            Tokenizer(path)
    path.write_bytes(gzip.compress(b"#version\ni n\n"))
    with pytest.raises(UserError, match="1 merges instead of CLIP's 48894"):
        Tokenizer(path)
    lines = [b"x y"] * 50_000
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(UserError, match="instead of"):
        Tokenizer(path)


def test_what_stands_behind_the_end_changes_nothing(variables):
    texts = np.zeros((4, 16), np.int32)
    texts[:, :4] = [START, 5, 6, END]
    texts[1, 4:] = 7
    texts[2, 1] = 9
    first, second, changed, _ = np.asarray(jax.jit(TINY.apply)(variables, texts))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    assert np.abs(first - changed).max() > 1e-3
    np.testing.assert_allclose(jax.jit(TINY.apply)(variables, texts[:1, :8])[0], first, rtol=1e-5, atol=1e-6)


def test_features_are_projected_by_the_components():
    rng = np.random.default_rng(0)
    x, mean, components = (rng.normal(size=size).astype(np.float32) for size in ((3, 12), 12, (64, 12)))
    params = {"mean": mean, "components": components}
    reduced = WordFeatures(TINY).apply({"params": params}, jnp.asarray(x), method="reduce")
    np.testing.assert_allclose(reduced, (x - mean) @ components.T, rtol=1e-5, atol=1e-5)


def test_bfloat16_computes_nearly_the_same(variables):
    tokens = jnp.array([[START, 5, 6, END, 0, 0, 0, 0]])
    exact, rough = (jax.jit(TINY.clone(dtype=dtype).apply)(variables, tokens) for dtype in ("float32", "bfloat16"))
    assert rough.dtype == jnp.float32
    difference = np.linalg.norm(exact - rough) / np.linalg.norm(exact)
    assert 1e-5 < difference < 0.05


def test_the_image_encoders_keys_are_no_difference():
    shapes = {"params/embedding": jax.ShapeDtypeStruct((clip_text.VOCABULARY, 4), jnp.float32)}
    table = rules.Table(clip_text.TABLE.rules, ignored=clip_text.TABLE.ignored)
    state = {"token_embedding.weight": np.ones((clip_text.VOCABULARY, 4), np.float16)}
    state |= {"visual.conv1.weight": np.zeros(1), "logit_scale": np.zeros(()), "context_length": np.zeros(())}
    made = rules.from_torch(state, table, shapes)
    assert made["params/embedding"]().dtype == np.float32
