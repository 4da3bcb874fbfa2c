import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import label_files, label_png, labels, tree
from prismer_jax.errors import UserError
from prismer_jax.experts import weights
from prismer_jax.experts.expert import Label
from prismer_jax.experts.ocr import expert as ocr
from prismer_jax.experts.ocr.reading import CHARACTERS
from prismer_jax.weights import rules, write
from tools import download


class Small(ocr.OcrDetection):
    """Both networks with few channels; only the features that the PCA takes are as many as in the official file."""

    size = (64, 64)

    def __init__(self, dtype="float32"):
        super().__init__(dtype, charnet={"channels": (4, 4, 4, 8)}, clip={"width": 16, "layers": 1, "heads": 2})


PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def state():
    """The official state dicts of CharNet, CLIP's text encoder and the PCA as one."""
    return rules.to_torch(tree.flatten(Small().random_variables()), Small.table)


def lay_out(folder, shared):
    """Puts files, but for those of weights, where tools.download and the official repository have them."""
    checkpoints, lexicon = folder / "expert_weights", folder / "ocr_detection/datasets/ICDAR2015/test"
    for place in (checkpoints, lexicon, folder / "clip"):
        place.mkdir(parents=True)
    shutil.copy(shared / "data/label_embeddings" / ocr.PCA, checkpoints)
    shutil.copy(shared / "data/clip" / ocr.MERGES, checkpoints)
    (lexicon / ocr.LEXICON).write_text("HOTEL\n")
    return checkpoints


@pytest.fixture(scope="module")
def checkpoints(state, shared, tmp_path_factory):
    folder = lay_out(tmp_path_factory.mktemp("official"), shared)
    charnet = {key for key in state if re.match("backbone|(word|char)_detector|char_recognizer", key)}
    clip = {key for key in state if key not in charnet and not key.startswith("pca.")}
    write.torch_file(folder / ocr.OcrDetection.file, {key: state[key] for key in charnet})
    others = {"visual.proj": np.zeros((2, 2), np.float16)}
    write.torch_file(folder.parent / "clip" / ocr.CLIP, {**{key: state[key] for key in clip}, **others})
    return folder


@pytest.fixture(scope="module")
def opened(checkpoints):
    expert = Small()
    return expert, weights.load(expert, checkpoints)


@pytest.fixture
def files(shared, tmp_path):
    """As `checkpoints`, with empty files for weights."""
    folder = lay_out(tmp_path, shared)
    (folder / ocr.OcrDetection.file).touch()
    (folder.parent / "clip" / ocr.CLIP).touch()
    return folder


def test_official_files_are_found_and_read(opened, state):
    expert, variables = opened
    assert expert.lexicon.words == ["HOTEL"]
    flat = tree.flatten(variables)
    np.testing.assert_array_equal(flat["params/reader/word/score/bias"], state["word_detector.word_fg_pred.bias"])
    np.testing.assert_array_equal(flat["params/meaning/clip/projection"], state["text_projection"])
    assert np.linalg.norm(flat["params/meaning/mean"]) == pytest.approx(14.898, abs=1e-3)  # the official PCA's


def test_words_get_clips_features(opened):
    expert, variables = opened
    label = Label(labels.blank("ocr_detection", 4, 4), words=["hotel", "nice", "2023"])
    features = expert.complete(variables, label).features
    assert features.shape == (3, 64)
    tokens = jnp.asarray(expert.tokenizer.batch(["nice"]))
    alone = expert.module.apply(variables, tokens, method="embed")
    np.testing.assert_allclose(features[1], alone[0], rtol=1e-5, atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_a_photo_without_words_has_an_empty_label(opened, tmp_path):
    expert, variables = opened
    reader = variables["params"]["reader"]
    nothing = {**reader, "word": {**reader["word"], "score": {**reader["word"]["score"], "bias": np.array([99.0, 0])}}}
    (label,) = expert.predict([PHOTO], {**variables, "params": {**variables["params"], "reader": nothing}})
    assert label.map.shape == (50, 70, 1)
    assert (label.map == 255).all()
    assert label.features.shape == (0, 64)
    png = label_files.write(tmp_path, expert.name, "a.jpg", label.map, features=label.features, words=label.words)
    features, words = label_files.read_words(png.with_suffix(".npz"))
    assert (features == 0).all()
    assert words == []


def drawn(text, sure):
    """Maps in which one word stands, of characters of 3x5 cells."""
    maps = {name: np.zeros((24, 24), np.float32) for name in ("word_score", "char_score", "word_angle")}
    maps |= {name: np.zeros((24, 24, 4), np.float32) for name in ("word_sides", "char_sides")}
    maps["char_class"] = np.zeros((24, 24, 68), np.float32)
    for y in range(3, 10):
        for x in range(1, 2 + 3 * len(text)):
            maps["word_score"][y, x] = 0.9
            maps["word_sides"][y, x] = (y - 3, 9 - y, x - 1, 1 + 3 * len(text) - x)
    for i, character in enumerate(text):
        for y in range(4, 9):
            for x in range(2 + 3 * i, 4 + 3 * i):
                maps["char_score"][y, x] = 0.9
                maps["char_sides"][y, x] = (y - 4, 8 - y, x - 2 - 3 * i, 3 + 3 * i - x)
                maps["char_class"][y, x, CHARACTERS.index(character)] = sure
    return maps


def test_from_maps_to_label_files(opened, tmp_path):
    expert, variables = opened
    label = expert.complete(variables, expert.finish(drawn("HOTXL", 0.9), (50, 70), {}))
    assert label.words == ["hotel"]
    assert (label.map == 0).sum() > 100
    png = label_files.write(tmp_path, expert.name, "a.jpg", label.map, features=label.features, words=label.words)
    features, words = label_files.read_words(png.with_suffix(".npz"))
    assert words == ["hotel"]
    np.testing.assert_allclose(features[0], label.features[0], rtol=1e-3, atol=1e-3)
    example = label_files.locate(tmp_path, [expert.name], "a.jpg")
    assert label_png.decode(expert.name, png.read_bytes()).shape == (50, 70, 1)
    np.testing.assert_array_equal(example[labels.WORDS_KEY], features)


def test_random_weights_have_stand_ins_for_features():
    expert = Small()
    assert expert.finish(drawn("12", 0.89), (64, 64), {}).words == []  # in doubt, and there is no lexicon
    label = expert.complete({}, expert.finish(drawn("12", 0.91), (64, 64), {}))
    assert label.words == ["12"]
    np.testing.assert_array_equal(label.features, labels.class_vectors(["12"]))


@pytest.mark.parametrize("name", [ocr.CLIP, ocr.PCA, ocr.MERGES])
def test_a_missing_file_is_one_line_with_the_command_that_fetches_it(files, name):
    (files.parent / "clip" if name == ocr.CLIP else files).joinpath(name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing; .*tools\.download {ocr.FILES[name]} --output") as error:
        weights.load(Small(), files)
    group, *names = str(error.value).split("tools.download ")[1].split(" --output")[0].split()
    assert [item.target for item in download.select(group, names)] == [name]


def test_a_missing_lexicon_is_a_warning(files, caplog):
    shutil.rmtree(files.parent / "ocr_detection")
    expert = Small()
    for _ in range(2):
        expert.open(files / expert.file)
    assert len(expert.lexicon) == 0
    (record,) = caplog.records
    assert "tools.download words GenericVocabulary.txt" in record.message
    assert "left out" in record.message


def test_a_converted_folder_needs_only_tokenizer_and_lexicon(opened, files):
    expert, variables = opened
    weights.export(files / expert.name, expert, variables)
    (files / ocr.PCA).unlink()
    again = Small()
    found = weights.load(again, files)
    assert again.tokenizer is not None
    assert again.lexicon.words == ["HOTEL"]
    theirs = variables["params"]["meaning"]["components"]
    np.testing.assert_array_equal(found["params"]["meaning"]["components"], theirs)
