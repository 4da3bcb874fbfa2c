"""Photos of any proportions as square tiles of one size, with a small whole image in front of them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.labels import EXPERTS
from prismer_jax.labels import blank as empty
from prismer_jax.pp.bilinear import squeezed
from prismer_jax.pp.image import one_photo, resized, shapes
from prismer_jax.pp.labels import maps, resample
from prismer_jax.pp.ops import Example, Op, register

Grid = tuple[int, int]  # rows and columns of tiles
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def tiled_size(height: int, width: int, tile: int, max_side: int, enlarge: bool, reference: bool = False) -> Grid:
    """Returns (height, width), multiples of `tile`, of a photo whose longer side is to fit into max_side.

    Args:
      enlarge: make the longer side max_side long, whatever it is; otherwise only shorten it.
      reference: scale by a float, as huggingface/nanoVLM does (data/custom_transforms.py): 51 sizes up to 512 x 2048,
        plain 3:4 photos among them, get a row of tiles more than exact arithmetic gives them.
    """
    long, short = max(height, width), min(height, width)
    target = max_side if enlarge else min(max_side, -(-long // tile) * tile)
    if reference:
        scale = target / long
        other = math.ceil(short * scale / tile) * tile
    else:
        other = -(-short * target // (long * tile)) * tile
    other = max(other, tile)
    return (other, target) if width >= height else (target, other)


def split(image: np.ndarray, tile: int) -> tuple[np.ndarray, Grid]:
    """Returns [n, tile, tile, 3], row by row, of an image whose sides are multiples of `tile`, and the grid."""
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    tiles = image.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return tiles.reshape(-1, tile, tile, 3), (rows, columns)


@register
def tiles(
    size: int,
    max_side: int | None = None,
    most: int | None = None,
    enlarge: bool = True,
    method: str = "bicubic",
    labels: int = 64,
    exact: bool = False,
    reference: bool = False,
) -> Op:
    """Cuts `image`, one photo or a list of them, into tiles [most, size, size, 3] with `image_mask` [most].

    A photo is stretched to multiples of `size`. One of a single tile is that; of several, the whole photo in one tile
    comes first. `grids` says the rows and columns of each photo's tiles.

    Args:
      size: pixels of a tile's side.
      max_side: the longest side of a stretched photo; by default `size`, which makes every photo one tile.
      most: tiles that a sample may have; shorter samples are filled up. By default those of one photo.
      enlarge, reference: see `tiled_size`.
      labels: pixels of a side of the label maps of each tile, where an example has maps: [most, labels, labels, c]. Of
        several photos, or none, they are empty.
      method: of the stretching, 'bicubic' or 'bilinear'.
      exact: keep the whole photo's tile as floats, as huggingface/nanoVLM does, four times the bytes for differences of
        at most half a level of 255; by default all tiles are uint8.

    Raises (the op):
      BadSample: more tiles than `most`, or a photo with more than 50 times the width of its height, or the reverse.
    """
    shapes(size, labels)
    max_side = max_side or size
    resampling = choose("method of tiles:", method, FILTERS)
    if max_side % size:
        raise UserError(f"tiles({size}, max_side={max_side}): not a multiple of the size.")
    if max_side > 8 * size:
        raise UserError(f"tiles({size}, max_side={max_side}): at most 8 x 8 tiles, for which there are tokens.")
    if most is not None and most < 1:
        raise UserError(f"tiles({size}, most={most}): a sample has at least one tile.")
    room = most or (1 if max_side == size else 1 + (max_side // size) ** 2)

    def planned(example: Example) -> tuple[list[np.ndarray], list[Grid], int]:
        """Returns an example's photos, none of a text alone, their grids and the number of tiles."""
        photos = example.get("image")
        photos = [] if photos is None else photos if isinstance(photos, list) else [one_photo(example, "tiles")]
        grids = []
        for photo in photos:
            height, width = photo.shape[:2]
            if max(height, width) > 50 * min(height, width):
                name = example.get("id", "?")
                raise BadSample(f"example {name}: a photo of {width}x{height} pixels is but a line.", "photo of a line")
            rows, columns = tiled_size(height, width, size, max_side, enlarge, reference)
            grids.append((rows // size, columns // size))
        number = sum(rows * columns + (rows * columns > 1) for rows, columns in grids)
        if number > room:
            name = example.get("id", "?")
            raise BadSample(f"example {name} has {number} tiles, more than most={room}.", "too many tiles")
        return photos, grids, number

    def op(example: Example, rng: np.random.Generator) -> Example:
        photos, grids, number = planned(example)
        cut = []
        for photo, (rows, columns) in zip(photos, grids, strict=True):
            photo = resized(photo, (rows * size, columns * size), resampling)
            parts, _ = split(photo, size)
            if len(parts) > 1:
                first = squeezed(photo, size)
                cut.append((first if exact else np.rint(first).astype(np.uint8))[None])
            cut.append(parts)
        maps = _tiled_labels(example, photos, grids, labels, room)
        image = np.zeros((room, size, size, 3), np.float32 if exact else np.uint8)
        if cut:
            image[:number] = np.concatenate(cut)
        return {**example, "image": image, "image_mask": np.arange(room) < number, "grids": grids, **maps}

    def dry(example: Example, rng: np.random.Generator) -> Example:
        """Counts tiles and cuts none."""
        _, grids, number = planned(example)
        return {**example, "image_mask": np.arange(room) < number, "grids": grids}

    op.dry = dry
    return op


def _tiled_labels(
    example: Example, photos: list[np.ndarray], grids: list[Grid], size: int, room: int
) -> dict[str, np.ndarray]:
    """Returns an example's label maps [room, size, size, c] cut as its one photo is; of several or none, empty ones."""
    out = {EXPERTS[name].key: np.stack([empty(name, size, size)] * room) for name in maps(example)}
    if len(photos) != 1:
        return out
    (height, width), (rows, columns) = photos[0].shape[:2], grids[0]
    boxes = [
        (width * column / columns, height * row / rows, width * (column + 1) / columns, height * (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    boxes = [(0, 0, width, height), *boxes] if len(boxes) > 1 else boxes
    for number, box in enumerate(boxes[:room]):
        for key, tile in resample({**example, "image": photos[0]}, (size, size), box).items():
            out[key][number] = tile
    return out
