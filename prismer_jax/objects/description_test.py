"""What is said of label maps that are drawn by hand, and in front of what."""

import numpy as np
import pytest

from prismer_jax import labels, pp
from prismer_jax.datasets import scenes
from prismer_jax.errors import BadSample
from prismer_jax.objects.description import sentences

NAMES = {"obj_detection": ["ball", "box, crate"], "seg_coco": ["ball", "grass", "sky"]}


class Words:
    """A tokenizer with a token a word."""

    def encode(self, text):
        return text.split()


@pytest.fixture
def example():
    """Two balls on the left, a box at the bottom right that is nearer, grass below and sky above."""
    ids = np.full((30, 30, 1), labels.BACKGROUND, np.uint8)
    ids[2:8, 2:8], ids[12:18, 2:6], ids[22:28, 22:28] = 0, 1, 2
    classes = labels.no_classes()
    classes[:3] = 0, 0, 1
    depth = np.full((60, 60, 1), 10, np.uint8)  # maps may have other sizes
    depth[24:36, 4:12], depth[44:56, 44:56] = 50, 200
    seg = np.full((30, 30, 1), 2, np.uint8)
    seg[16:] = 1
    return {
        "labels/obj_detection": ids,
        labels.CLASSES_KEY: classes,
        "labels/depth": depth,
        "labels/seg_coco": seg,
        "words": ["open", "sale"],
    }


SAID = [
    "There are 2 x ball at the top left and left and a box at the bottom right.",
    "The box at the bottom right is nearest, the ball at the top left farthest.",
    "It reads “open” and “sale”.",
    "Also sky and grass.",
]


def test_things_are_counted_placed_and_ordered_by_distance(example):
    assert sentences(example, NAMES) == SAID
    assert sentences(example, NAMES, most=1)[0] == "There are 2 x ball at the top left and left."
    assert sentences({"labels/seg_coco": example["labels/seg_coco"]}, NAMES) == ["There is sky and grass."]
    assert sentences({}, NAMES) == []
    assert sentences({"words": ["", "open"]}) == ["It reads “open”."]  # a student of the experts reads no texts


def test_what_is_seen_is_said_in_front_of_what_is_asked(example):
    def run(spec, **more):
        return pp.build(spec, Words())({**example, **more}, np.random.default_rng(0))

    spec = f"describe({NAMES!r})"
    assert run(spec, prompt="What is it?")["prompt"] == f"{' '.join(SAID)} What is it?"
    assert run(spec, prompt="")["prompt"] == run(spec, prompt="")["described"] == " ".join(SAID)
    turns = run(spec, turns=[{"user": "Who?", "assistant": "me"}, {"user": "b"}])["turns"]
    assert turns == [{"user": f"{' '.join(SAID)} Who?", "assistant": "me"}, {"user": "b"}]
    short = run(f"describe({NAMES!r}, length={len(SAID[0].split()) + 2})", prompt="?")
    assert short["prompt"] == f"{SAID[0]} ?"  # whole sentences
    with pytest.raises(BadSample, match="behind an op that asks"):
        run(spec)


def test_a_scene_is_described_within_150_words():
    source = scenes.load(task="caption", split="val", count=20)
    names = dict.fromkeys(("obj_detection", "seg_coco"), scenes.CLASSES)
    chain = pp.build(f"labels_for('all')|decode|caption_prompt()|describe({names!r})", Words())
    for index in range(len(source)):
        said = chain(source[index], np.random.default_rng(0))["described"]
        assert 5 < len(said.split()) <= 150
        assert any(name in said for name in scenes.CLASSES)
