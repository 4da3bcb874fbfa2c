import jax
import numpy as np
import pytest
import tokenizers

from prismer_jax import tree
from prismer_jax.datasets.photos import Examples
from prismer_jax.errors import UserError
from prismer_jax.models.nanovlm import build, projector
from prismer_jax.models.nanovlm.model import NanoVLM

IDS = {word: id for id, word in enumerate(["a", "red", "blue", "thing", "once", "[UNK]"])}
CAPTIONS = {0: ["A red thing", "a red red thing"], 2: ["a blue thing"]}  # by the channel that a photo has


@pytest.fixture(scope="module")
def tokenizer():
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="module")
def model() -> NanoVLM:
    return build("tiny", vision={"image_size": 16}, shuffle=2)


@pytest.fixture(scope="module")
def parameters(model):
    return tree.flatten({"params": model.init_variables(jax.random.key(0))["params"]})


def photos(count=24):
    """Returns noisy photos, red and blue by turns; the last cannot be read."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        channel = 2 * (number % 2)
        image = rng.integers(0, 60, (16, 16, 3), np.uint8)
        image[..., channel] += 190
        rows.append({"id": str(number), "image": image, "captions": CAPTIONS[channel]})
    return Examples([*rows, {"id": "bad", "image": b"no photo", "captions": ["a blue thing"]}])


def test_a_photos_target_is_the_mean_of_the_words_that_tell_it_from_others(tokenizer):
    words = np.random.default_rng(0).standard_normal((len(IDS), 8)).astype(np.float32)
    made = projector.targets([CAPTIONS[0], CAPTIONS[2], CAPTIONS[0], CAPTIONS[2], ["a once thing"]], words, tokenizer)
    centred = words - words.mean(0)
    expected = np.stack([centred[IDS["red"]], centred[IDS["blue"]]] * 2 + [np.zeros(8)])
    np.testing.assert_allclose(made, expected - expected.mean(0), rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="share no word"):
        projector.targets([["a thing"], ["a thing"], ["once"]][:2], words, tokenizer)


def test_image_tokens_become_words_by_ridge_regression(model, parameters, tokenizer):
    """The same as stacking the penalty below the features and solving by least squares."""
    vision = {name: np.asarray(x) for name, x in parameters.items() if name.startswith("params/vision/")}
    words, source = np.asarray(parameters["params/language/word_embedding"]), photos()
    made = projector.fitted(model, vision, words, tokenizer, source)
    images = np.stack([source[i]["image"] for i in range(24)])
    variables = tree.unflatten({**parameters, **made})
    features = np.asarray(model.apply(variables, {"image": images}, method="features"))
    np.testing.assert_allclose(features.mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(features.std((0, 1)), 1, atol=1e-4)

    tokens = np.asarray(model.apply(variables, {"image": images}, method="encode"))
    assert np.sqrt(np.mean(tokens**2)) == pytest.approx(np.sqrt(np.mean(words**2)), rel=1e-2)
    x = np.asarray(projector._encoded(model, variables, images), np.float64).reshape(tokens.shape[0] * 4, -1)
    captions = [source[i]["captions"] for i in range(25)]
    y = np.repeat(projector.targets(captions, words, tokenizer)[:24], 4, axis=0)
    penalty = np.sqrt(projector.RIDGE * np.mean(np.sum(x**2, axis=0))) * np.eye(x.shape[1])
    kernel = np.linalg.lstsq(np.concatenate([x, penalty]), np.concatenate([y, np.zeros((len(penalty), 72))]))[0]
    fitted = made["params/projector/kernel"]
    size = np.sum(fitted * kernel) / np.sum(kernel**2)
    np.testing.assert_allclose(fitted, size * kernel, atol=1e-3 * np.abs(fitted).max())

    red, blue = (tokens[start::2].mean((0, 1)) for start in (0, 1))
    difference = words[IDS["red"]] - words[IDS["blue"]]
    cosine = (red - blue) @ difference / np.linalg.norm(red - blue) / np.linalg.norm(difference)
    assert cosine > 0.99
