"""Photos become tiles: sizes, order, the whole photo in front, label maps cut alike."""

import numpy as np
import pytest
from PIL import Image

from prismer_jax import pp
from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp import tiles
from prismer_jax.pp.bilinear import squeezed


def run(spec, example):
    return pp.build(spec)(example, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("size", "enlarge", "expected"),
    [((480, 640), True, (1536, 2048)), ((480, 640), False, (1024, 1024)), ((100, 4097), False, (512, 2048))],
)
def test_sizes_are_multiples_of_a_tile(size, enlarge, expected):
    assert tiles.tiled_size(*size, 512, 2048, enlarge) == expected


def test_a_photo_of_exact_proportions_gets_no_row_more_unless_as_in_the_reference():
    assert tiles.tiled_size(273, 364, 512, 2048, True) == (1536, 2048)
    assert tiles.tiled_size(273, 364, 512, 2048, True, reference=True) == (2048, 2048)


def test_tiles_go_row_by_row_behind_the_whole_photo():
    photo = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 8, 0), 8, 1)[..., None].repeat(3, 2)
    out = run("tiles(8, 24)", {"image": photo})
    assert out["grids"] == [(2, 3)]
    assert out["image"].shape == (10, 8, 8, 3)
    assert out["image_mask"].tolist() == [True] * 7 + [False] * 3
    assert out["image"][1:7, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]
    assert not out["image"][7:].any()
    assert abs(int(out["image"][0].mean()) - 100) <= 1


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_rows_are_stretched_before_columns_whatever_pillow_does_first(method):
    """The order of Pillow up to version 12, with which the published models were trained."""
    photo = np.random.default_rng(0).integers(0, 256, (91, 37, 3), np.uint8)
    rows = Image.fromarray(photo).resize((56, 91), tiles.FILTERS[method])
    theirs = np.asarray(rows.resize((56, 56), tiles.FILTERS[method]))
    np.testing.assert_array_equal(run(f"tiles(56, method='{method}')", {"image": photo})["image"][0], theirs)


def test_the_whole_photo_is_a_triangle_filter_of_pillow_but_for_its_rounding():
    photo = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    theirs = np.asarray(Image.fromarray(photo).resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(squeezed(photo, 32) - theirs).max() < 1.01


def test_one_tile_is_the_whole_photo():
    photo = np.zeros((30, 20, 3), np.uint8)
    out = run("tiles(16, method='bilinear')", {"image": photo})
    assert out["image"].shape == (1, 16, 16, 3)
    assert out["grids"] == [(1, 1)]


def test_several_photos_and_none():
    photo = np.zeros((8, 16, 3), np.uint8)
    out = run("tiles(8, 16, most=8)", {"image": [photo, photo[:, :8]]})
    assert out["grids"] == [(1, 2), (2, 2)]  # the square one is made as long
    none = run("tiles(8, 16, most=8)", {})
    assert none["image"].shape == (8, 8, 8, 3)
    assert not none["image_mask"].any()
    assert none["grids"] == []


def test_label_maps_are_cut_as_the_photo_is():
    label = np.repeat(np.repeat(np.array([[1, 2], [3, 4]], np.uint8), 8, 0), 8, 1)[..., None]
    out = run("tiles(8, 16, labels=4)", {"image": np.zeros((16, 16, 3), np.uint8), "labels/seg_coco": label})
    assert out["labels/seg_coco"].shape == (5, 4, 4, 1)
    assert [np.unique(tile).tolist() for tile in out["labels/seg_coco"]] == [[1, 2, 3, 4], [1], [2], [3], [4]]


def test_what_cannot_be_cut_says_so():
    with pytest.raises(BadSample, match="but a line"):
        run("tiles(8)", {"image": np.zeros((1, 51, 3), np.uint8)})
    with pytest.raises(BadSample, match="more than most=2"):
        run("tiles(8, 16, most=2)", {"image": np.zeros((16, 16, 3), np.uint8)})
    with pytest.raises(UserError, match="at most 8 x 8"):
        pp.build("tiles(8, 72)")
    with pytest.raises(UserError, match="not a multiple"):
        pp.build("tiles(8, 20)")
