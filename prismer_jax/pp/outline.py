"""A box drawn on a photo, around what is spoken of."""

from __future__ import annotations

import numpy as np

from prismer_jax.errors import BadSample
from prismer_jax.pp.ops import Example, Op, register

RED = (255, 0, 0)


@register
def outline() -> Op:
    """Draws an example's `bbox`, y1, x1, y2, x2 as fractions of height and width, in red, one pixel wide.

    Sources: google-research/big_vision, pp/proj/paligemma/widgetcap.py; pixels are those of TensorFlow's
    draw_bounding_box_op.cc.

    Raises (the op):
      BadSample: there is no such box.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        box, image = example.get("bbox"), example["image"].copy()
        if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4:
            raise BadSample(f"example {example.get('id', '?')} has no bbox of y1, x1, y2, x2 to outline.", "no box")
        last = np.array(image.shape[:2]) - 1
        ends = (np.array(box, np.float64).reshape(2, 2) * last).astype(int)  # cut off, not rounded
        (top, left), (bottom, right) = ends
        if bottom < top or right < left:
            raise BadSample(f"example {example.get('id', '?')}: its bbox {list(box)} has no pixels.", "no box")
        rows, columns = (slice(max(low, 0), high + 1) for low, high in ((top, bottom), (left, right)))
        for row in {top, bottom} & set(range(image.shape[0])):
            image[row, columns] = RED
        for column in {left, right} & set(range(image.shape[1])):
            image[rows, column] = RED
        return {**example, "image": image}

    return op
