import numpy as np
import pytest

from prismer_jax import labels, pp
from prismer_jax.errors import BadSample, UserError
from prismer_jax.objects import codec as codecs
from prismer_jax.objects import spelling
from prismer_jax.pp import location_tokens, tokenizer

MASK = {"size": [10, 20], "counts": [0, 50, 150]}  # the five columns on the left


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    rng = np.random.default_rng(0)
    weights = {key: rng.standard_normal(shape) for key, shape in codecs.shapes(8, 4).items()}
    path = tmp_path_factory.mktemp("codec") / "codec.npz"
    codecs.MaskCodec(weights).save(path)
    return str(path)


def example():
    objects = [
        {"name": "cat", "box": [0, 0, 1, 0.25], "segmentation": MASK, "size": [10, 20]},
        {"name": "dog", "box": [0.5, 0.5, 1, 1], "segmentation": [[10, 5, 20, 5, 20, 10]], "size": [10, 20]},
        {"name": "cat", "box": [0, 0.5, 0.5, 1], "segmentation": None, "size": [10, 20]},
    ]
    return {"id": "a", "objects": objects}


@pytest.fixture(scope="module")
def words_of_places(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISMER_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        return tokenizer.load(location_tokens.of_scenes())


@pytest.fixture
def turn(words_of_places):
    def turn(spec, seed=0, given=None):
        return pp.build(spec, words_of_places)(given or example(), np.random.default_rng(seed))["turns"]

    return turn


def test_detect_asks_for_what_is_there_in_random_order(turn):
    asked, said = set(), set()
    for seed in range(30):
        (turns,) = turn("detect()", seed)
        asked.add(turns["user"])
        said.add(turns["assistant"])
    assert asked == {"detect cat ; dog", "detect dog ; cat"}
    assert len(said) == 6
    boxes = "<loc0000><loc0000><loc1023><loc0256> cat", "<loc0512><loc0512><loc1023><loc1023> dog"
    assert all(set(boxes) <= set(text.split(" ; ")) for text in said)
    assert turn("detect()", 3) == turn("detect()", 3)


def test_detect_may_ask_for_what_is_not_there(turn):
    (turns,) = turn("detect(names=('dog', 'horse'))")
    assert turns == {"user": "detect dog ; horse", "assistant": "<loc0512><loc0512><loc1023><loc1023> dog"}
    assert turn("detect(names=('horse',), answer=False)") == [{"user": "detect horse"}]
    with pytest.raises(BadSample, match="example a has no object that is asked for"):
        turn("detect(names=('horse',))")
    with pytest.raises(BadSample, match="says nothing of objects"):
        turn("detect()", given={"id": "b"})


def test_segment_writes_the_codes_of_masks(turn, codec):
    cats = example()["objects"]
    given = {"id": "a", "objects": [cats[0], cats[1]]}
    texts = {
        turns["user"]: turns["assistant"] for seed in range(9) for turns in turn(f"segment({codec!r})", seed, given)
    }
    assert texts.keys() == {"segment cat", "segment dog"}
    (found,), broken = spelling.parse(texts["segment cat"])
    assert (found.name, broken) == ("cat", 0)
    # All of its box belongs to the cat, half of its box to the dog.
    assert list(found.codes) == codecs.load(codec).encode(np.ones((1, 64, 64)))[0].tolist()
    assert spelling.parse(texts["segment dog"])[0][0].codes != found.codes
    (turns,) = turn(f"segment({codec!r}, prompt='{{name}}', named=False)", 0, {"id": "a", "objects": [cats[0]]})
    assert turns["user"] == "cat"
    assert spelling.parse_mask(turns["assistant"]) is not None
    assert turns["assistant"].endswith(">")


def test_what_cannot_be_segmented_is_a_bad_sample(turn, codec):
    one = example()["objects"][0]
    for change, problem in (
        ({"segmentation": None}, "its cat has a box but no mask"),
        ({"size": [20, 10]}, "cat: a mask has 10x20 pixels, its photo 20x10"),
        ({"box": [0, 0, 0.01, 1]}, "cat: the box .* holds no pixel"),
    ):
        with pytest.raises(BadSample, match=problem):
            turn(f"segment({codec!r})", given={"id": "a", "objects": [one | change]})
    with pytest.raises(UserError, match="no such file"):
        turn("segment('none.npz')")
    with pytest.raises(UserError, match="tokenizer 'scenes' has no <loc0000>"):
        pp.build("detect()", tokenizer.load("scenes"))


def test_objects_of_a_map_of_instances():
    ids = np.full((10, 20, 1), labels.BACKGROUND, np.uint8)
    ids[:, :5], ids[5:, 10:], ids[0, 19] = 0, 1, 2
    classes = labels.no_classes()
    classes[:3] = 1, 0, 0
    given = {"id": "a", "labels/obj_detection": ids, labels.CLASSES_KEY: classes}
    op = pp.build("label_objects(('dog', 'cat'), least=2)")
    found = op(given, np.random.default_rng(0))["objects"]
    assert [(one["name"], one["box"]) for one in found] == [("cat", (0, 0, 1, 0.25)), ("dog", (0.5, 0.5, 1, 1))]
    np.testing.assert_array_equal(found[0]["segmentation"], ids[..., 0] == 0)
    assert op({"id": "b"}, np.random.default_rng(0))["objects"] == []


@pytest.mark.parametrize("op", ["flip(1.0)", "random_resized_crop(8)", "randaugment()"])
def test_ops_that_move_a_photo_refuse_objects(op):
    given = example() | {"image": np.zeros((10, 20, 3), np.uint8)}
    with pytest.raises(UserError, match="boxes and masks of its objects would stay where they were"):
        pp.build(op)(given, np.random.default_rng(0))
