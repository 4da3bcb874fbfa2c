import numpy as np

from prismer_jax.experts.segmentation.panoptic import Segment, confident, panoptic

THING, STUFF, OTHER_STUFF, NOTHING = 0, 1, 2, 3


def classes(*queries):
    """Logits of queries that are (class, probability): the other classes share the rest."""
    rows = []
    for category, probability in queries:
        row = np.full(4, (1 - probability) / 3)
        row[category] = probability
        rows.append(np.log(row))
    return np.asarray(rows, np.float32)


def masks(*rows):
    """Logits of masks of one row of pixels, from their probabilities."""
    p = np.asarray(rows, np.float32).T[None]
    return np.log(p / (1 - p))


def test_queries_are_chosen_that_are_sure_to_be_something():
    logits = classes((THING, 0.9), (NOTHING, 0.99), (STUFF, 0.7), (STUFF, 0.81))
    assert confident(logits).tolist() == [0, 3]
    assert confident(logits, 0.5).tolist() == [0, 2, 3]


def test_the_most_probable_query_has_a_pixel_if_its_mask_does():
    made = panoptic(
        classes((THING, 0.9), (THING, 0.99), (STUFF, 0.95)),
        masks([0.9, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.9, 0.1, 0.1], [0.2, 0.2, 0.2, 0.8, 0.4]),
        {THING},
    )
    # Two things of one class are two segments; the last pixel's best mask is less than one half.
    assert made.map.tolist() == [[1, 1, 2, 3, 0]]
    assert made.segments == (Segment(1, THING, True), Segment(2, THING, True), Segment(3, STUFF, False))
    assert made.map.dtype == np.int32


def test_stuff_of_a_class_is_one_segment():
    made = panoptic(
        classes((STUFF, 0.9), (OTHER_STUFF, 0.9), (STUFF, 0.9)),
        masks([0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]),
        {THING},
    )
    assert made.map.tolist() == [[1, 2, 1]]
    assert made.segments == (Segment(1, STUFF, False), Segment(2, OTHER_STUFF, False))


def test_a_query_that_others_cover_is_dropped_and_its_pixels_stay_free():
    logits = classes((THING, 0.85), (THING, 0.99))
    covered = masks([0.9, 0.9, 0.9], [0.9, 0.1, 0.1])  # keeps two of three pixels: less than 0.8
    made = panoptic(logits, covered, {THING})
    assert made.map.tolist() == [[1, 0, 0]]
    assert made.segments == (Segment(1, THING, True),)
    assert panoptic(logits, covered, {THING}, min_overlap=0.6).map.tolist() == [[2, 1, 1]]


def test_no_query_no_segment():
    made = panoptic(np.zeros((0, 4), np.float32), np.zeros((2, 3, 0), np.float32), {THING})
    assert made.map.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert made.segments == ()
