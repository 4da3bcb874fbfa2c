import numpy as np
import pytest

from prismer_jax.objects import spelling

SEGS = "".join(f"<seg{code:03d}>" for code in range(16))


def test_boxes_are_rounded_to_even_bins_and_kept_within_the_words():
    halves = np.array([0.5, 1.5, 2.5, 3.5]) / 1023
    assert spelling.bins(halves).tolist() == [0, 2, 2, 4]
    assert spelling.bins(np.array([-0.1, 0, 1, 1.2])).tolist() == [0, 0, 1023, 1023]


def test_several_objects_come_back_as_they_were_spelt():
    boxes = [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]
    text = spelling.JOINED.join(
        [spelling.spell(boxes[0], "tabby cat", range(16)), spelling.spell(boxes[1], "dog"), spelling.spell(boxes[0])]
    )
    found, broken = spelling.parse(text, 1023)
    assert broken == 0
    assert [one.name for one in found] == ["tabby cat", "dog", ""]
    assert [one.codes for one in found] == [tuple(range(16)), (), ()]
    np.testing.assert_allclose([one.box for one in found], [boxes[0], boxes[1], boxes[0]], atol=0.5 / 1023)


def test_the_scale_is_a_switch():
    text = "<loc0256><loc0000><loc0512><loc1023> cat"
    assert spelling.parse(text)[0][0].box == (0.25, 0.0, 0.5, 1023 / 1024)
    assert spelling.parse(text, 1023)[0][0].box == (256 / 1023, 0.0, 512 / 1023, 1.0)


@pytest.mark.parametrize(
    "broken",
    [
        "<loc0001><loc0002><loc0003> cat",  # three
        "<loc0001><loc0002><loc0003><loc0004><loc0005> cat",
        "<loc0009><loc0002><loc0003><loc0004> cat",  # upside down
        "<loc0001><loc0004><loc0003><loc0004> cat",  # no width
        "<loc0001><loc0002><loc0003><loc1024> cat",  # no such word
        f"<loc0001><loc0002><loc0003><loc0004>{SEGS[:-8]} cat",  # 19 of 20
        f"{SEGS}<loc0001><loc0002><loc0003><loc0004> cat",  # out of order
        f"<loc0001><loc0002><loc0003><loc0004>{SEGS[:-8]}<seg128> cat",
    ],
)
def test_broken_objects_are_counted_beside_good_ones(broken):
    good = "<loc0001><loc0002><loc0003><loc0004> dog"
    for text in (f"{good} ; {broken}", f"{broken} ; {good}", f"{broken} {good}"):
        found, number = spelling.parse(text)
        assert [one.name for one in found] == ["dog"], text
        assert number == 1


@pytest.mark.parametrize("text", ["", "a cat on a mat", "cat ; dog", "<loc1> <seg> <locabcd>"])
def test_a_text_without_places_has_no_objects(text):
    assert spelling.parse(text) == ([], 0)


def test_a_mask_is_read_off_the_beginning_alone():
    start = f"<loc0001><loc0002><loc0003><loc0004>{SEGS}"
    for rest in ("", " cat", "<seg001>", " ; <loc0001>"):
        assert spelling.parse_mask(start + rest).codes == tuple(range(16))
    for text in (f"a {start}", start[:-8], start.replace("<loc0003>", "<loc0001>"), "cat"):
        assert spelling.parse_mask(text) is None
