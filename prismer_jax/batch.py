"""The batch: what models read, and all that the loop, decoding and evaluators know of a model's input.

image        uint8 [B,(M,)H,W,3]: the photo, or M tiles or frames of it
image_mask   bool [B,M]: which of these there are
image_id     int32 [B]: alike for rows of one photo, whose texts are no negatives of each other (the op `image_id`)
features     float16 [B,(M,)N,D]: what a frozen encoder made of the image, in place of it (see training.features)
labels/...   the experts' label maps and the tables that go with them (see prismer_jax.labels)
text         int32 [B,T]: token ids
mask_input   bool [B,T]: a token, and no padding
mask_ar      int32 [B,T]: 1 sees what is before it, 0 its whole block of zeros (as in big_vision)
segment      int32 [B,T]: number of the text in a row that several texts share; they do not see each other
mask_loss    float32 [B,T]: the weight of each token in the loss
draw         uint32 [B]: of whom a row is; what is drawn for its text depends on this and not on the row's place
_mask        bool [B]: False for a row that fills up a last batch
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prismer_jax.errors import UserError

TEXT = ("text", "mask_input", "mask_ar", "segment")
BY_TEXT = (*TEXT, "mask_loss", "draw", "_mask")  # a row of these is of a text, of which an image may have several
KEYS = ("image", "image_mask", "image_id", "features", *BY_TEXT)


class Batch(dict):
    """A batch for a model to read: a key that is missing is a UserError, raised while the model is traced."""

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"The batch has no {key!r}, which the model or the loss reads; it has {', '.join(sorted(self))}. "
            "Add an op to pp that makes it."
        )


def inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a batch that may be read on a device: no ids, file names and the like."""
    return {key: value for key, value in batch.items() if key in KEYS or key.startswith("labels/")}


def prompts(text: np.ndarray, mask_input: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the text keys of prompts [B,T]: each of them is one segment, read from left to right."""
    ones = np.ones(text.shape, np.int32)
    return {"text": text, "mask_input": mask_input, "mask_ar": ones, "segment": 0 * ones}
