"""The ops on label maps alone; how maps are resampled beside the photo stands in image_test.py."""

import numpy as np
import pytest

from prismer_jax import labels, pp
from prismer_jax.errors import UserError
from prismer_jax.labels import CLASSES_KEY, EXPERTS, WORDS_KEY

SIZE, CLASSES = 64, 9


def example():
    maps = {row.key: labels.blank(name, SIZE, SIZE) for name, row in EXPERTS.items() if name != "seg_ade"}
    tables = {CLASSES_KEY: labels.no_classes(), WORDS_KEY: labels.no_words()}
    return {"image": np.zeros((SIZE, SIZE, 3), np.uint8), "words": ["stop"], **maps, **tables}


def noisy(experts, seed=0, spec="noise_labels('{}', num_classes=9)"):
    return pp.build(spec.format(experts))(example(), np.random.default_rng(seed))


def test_noise_replaces_the_named_experts_and_no_others():
    before, after = example(), noisy("depth+ocr_detection")
    changed = {key for key in before if key not in after or not np.array_equal(before[key], after[key])}
    assert changed == {"labels/depth", "labels/ocr_detection", WORDS_KEY, "words"}


@pytest.mark.parametrize("name", labels.PAPER)
def test_noise_is_uniform_over_what_an_expert_may_say(name):
    row, after = EXPERTS[name], noisy(name)
    noise = after[row.key]
    assert noise.shape == (SIZE, SIZE, row.channels)
    assert noise.dtype == np.uint8
    count = {"scaled": 256, "classes": CLASSES}.get(row.embed, 255)  # 255 is the background
    seen = np.bincount(noise.ravel(), minlength=256)
    expected = noise.size / count
    assert seen[count:].sum() == 0
    assert abs(seen[:count] - expected).max() < 6 * np.sqrt(expected)
    assert np.abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.1


def test_noise_draws_classes_of_instances_and_features_of_words():
    after = noisy("all")
    assert after[CLASSES_KEY].dtype == np.int32
    assert set(after[CLASSES_KEY]) == set(range(CLASSES))
    assert after[WORDS_KEY].dtype == np.float16
    assert after[WORDS_KEY].shape == labels.no_words().shape
    assert 0.97 < after[WORDS_KEY].astype(float).std() < 1.03


def test_noise_takes_the_classes_of_the_official_tables_by_default():
    after = noisy("seg_coco+obj_detection", spec="noise_labels('{}')")
    assert after["labels/seg_coco"].max() == 132
    assert CLASSES < after[CLASSES_KEY].max() < 722


def test_noise_is_a_function_of_the_rng_and_leaves_the_example_as_it_was():
    first, again, other = noisy("all"), noisy("all"), noisy("all", seed=1)
    for key in (*(EXPERTS[name].key for name in labels.PAPER), CLASSES_KEY, WORDS_KEY):
        assert np.array_equal(first[key], again[key])
        assert not np.array_equal(first[key], other[key])
    kept = example()
    pp.build("noise_labels()")(kept, np.random.default_rng(0))
    assert kept["words"] == ["stop"]
    assert np.array_equal(kept["labels/depth"], labels.blank("depth", SIZE, SIZE))


def test_noise_of_an_expert_without_a_map_and_of_an_unknown_one():
    assert "labels/seg_ade" not in noisy("seg_ade+depth")
    with pytest.raises(UserError, match="Did you mean 'depth'"):
        noisy("deph")
