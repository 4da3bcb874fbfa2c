"""What BLIP and BLIP-2 do to photos and texts before a model sees them.

LAVIS's blip_image_eval is `resize(364)` here (or 224), its blip2_image_train is `random_resized_crop(364)|flip`, and
its blip_image_train the same with `|blip_randaugment(2, 5)` behind it; a model normalises photos.

Source: salesforce/LAVIS, lavis/processors/randaugment.py and blip_processors.py.
"""

from __future__ import annotations

import functools
import importlib
import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.pp import randaugment
from prismer_jax.pp.augment import without_box
from prismer_jax.pp.ops import Example, Op, register
from prismer_jax.pp.randaugment import move_labels
from prismer_jax.pp.text import Plain

GEOMETRY = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 10.0, "translate_y": 10.0, "rotate": 30.0}  # at m = 10
GREY = (128, 128, 128)  # of what comes in from outside
VQA_PROMPT = "Question: {} Short answer:"
SPACY = "en_core_web_sm"  # spaCy's model of English that LAVIS takes

_SYMBOLS = '.!"()*#:;~'
_TO_SPACE, _TO_NOTHING = str.maketrans(dict.fromkeys(_SYMBOLS, " ")), str.maketrans(dict.fromkeys(_SYMBOLS))


class Blip(Plain):
    """Captions and questions in lower case and without most punctuation, of at most 50 words."""

    max_words = 50

    def caption(self, text: str, max_words: int | None = None, prefix: str | None = None) -> str:
        """Puts a space for a symbol and for several spaces; a single tab or line break stays one."""
        text = re.sub(r"\s{2,}", " ", text.lower().translate(_TO_SPACE)).rstrip("\n").strip(" ")
        return " ".join(text.split(" ")[:max_words])

    def question(self, text: str, max_words: int | None = None) -> str:
        """Leaves symbols out and puts nothing for them; spaces in front and within stay, and each ends a word."""
        return " ".join(text.lower().translate(_TO_NOTHING).rstrip(" ").split(" ")[:max_words])

    def caption_said(self, tokenizer, prompt, ids) -> str:
        """Returns the caption without spaces or line breaks around it."""
        return tokenizer.decode(ids).strip()


class Spacy(Blip):
    """BLIP's style with answers as LAVIS's of OK-VQA: nouns and verbs in the base form that spaCy finds.

    Source: salesforce/LAVIS, models/blip2_models/blip2.py: _lemmatize.
    """

    def answer_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        words = _spacy()(super().answer_said(tokenizer, prompt, ids))
        return " ".join(word.lemma_ if word.pos_ in ("NOUN", "VERB") else word.text for word in words)


class Simplemma(Blip):
    """The same by simplemma's table, which takes no model and knows no parts of speech: 'best' becomes 'good', too."""

    def answer_said(self, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
        lemmatize = _module("simplemma", "pip install simplemma").lemmatize
        return " ".join(lemmatize(word, lang="en") for word in super().answer_said(tokenizer, prompt, ids).split())


@functools.cache
def _spacy() -> Any:
    remedy = f"pip install spacy && python -m spacy download {SPACY}"
    try:
        return _module("spacy", remedy).load(SPACY)
    except OSError:
        raise UserError(f"spaCy has no model {SPACY}: {remedy}, or take the style blip_simplemma.") from None


def _module(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"The style of these answers needs {name}: {remedy}.") from None


@register
def prompt_template(template: str = VQA_PROMPT) -> Op:
    """Puts an example's `prompt`, such as a question, in the place of '{}' in a template."""
    if template.count("{}") != 1:
        raise UserError(f"prompt_template({template!r}): write {{}} once, where the question stands.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "prompt" not in example:
            raise UserError("prompt_template needs an op before it that makes a prompt: question_prompt, question ...")
        return dict(example, prompt=template.replace("{}", example["prompt"]))

    return op


@register
def image_id() -> Op:
    """Writes `image_id`, a number of the photo, by which a contrastive loss knows texts of the same one in a batch."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        name = str(example.get("photo", example["id"])).encode()
        return dict(example, image_id=np.array(zlib.crc32(name), np.uint32).view(np.int32))

    return op


@register
def blip_randaugment(n: int = 2, m: float = 5, autocontrast: Literal["reference", "pillow"] = "reference") -> Op:
    """Draws n moves of strength m (0 to 10) as BLIP does, and applies each with probability 1/2.

    Colours change as in `randaugment`. Geometry differs: translations are in pixels, what comes in from outside is
    grey, photos are rotated bilinearly. Label maps move along, with the expert's fill value outside.

    Args:
      autocontrast: 'reference' makes a channel white whose darkest pixel is not black, as the official code does, in
        which an 8-bit integer overflows; 'pillow' stretches the channel as the name says.
    """
    if n < 0 or not 0 <= m <= 10:
        raise UserError(f"blip_randaugment(n={n}, m={m}): n is a count and m lies in 0 to 10.")

    def op(example: Example, rng: np.random.Generator) -> Example:
        example = without_box(example, "blip_randaugment")
        for move in rng.choice(len(randaugment.MOVES), size=n):
            if rng.random() <= 0.5:
                example = apply(example, randaugment.MOVES[move], m, rng.random(), autocontrast)
        return example

    return op


def apply(example: Example, move: str, m: float, draw: float, autocontrast: str = "reference") -> Example:
    """Applies one move by name; a `draw` from [0, 1) decides which side a geometric one goes to.

    Half of the draws are one side, but for rotations the reference has them the other way round.
    """
    if move == "autocontrast" and autocontrast == "reference":
        return dict(example, image=_overflowing_autocontrast(example["image"]))
    if move not in GEOMETRY:
        return randaugment.apply(example, move, m, 1)
    negative = draw < 0.5 if move == "rotate" else draw > 0.5
    image = example["image"]
    size = image.shape[1], image.shape[0]
    matrix = _matrix(move, GEOMETRY[move] * m / 10 * (-1 if negative else 1), *size)
    out = dict(example, image=cv2.warpAffine(image, matrix, size, borderValue=GREY))
    # OpenCV's matrix says where the centre of a pixel goes, at whole numbers; label maps are asked where it is from.
    (a, b, c), (d, e, f) = cv2.invertAffineTransform(matrix)
    affine = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
    return out | move_labels(example, affine, size)


def _overflowing_autocontrast(image: np.ndarray) -> np.ndarray:
    low, high = (extreme.astype(float) for extreme in (image.min((0, 1)), image.max((0, 1))))
    scale = 255 / np.maximum(high - low, 1)
    stretched = (image + (-low) % 256) * scale
    return np.where(high > low, stretched.clip(0, 255), image).astype(np.uint8)


def _matrix(
    move: Literal["shear_x", "shear_y", "translate_x", "translate_y", "rotate"], value: float, width: int, height: int
) -> np.ndarray:
    """Returns [2, 3]: from the pixel (x, y, 1) of the photo to the pixel of the result."""
    if move == "rotate":
        return cv2.getRotationMatrix2D((width / 2, height / 2), value, 1)
    matrix = np.eye(2, 3, dtype=np.float32)
    row = 0 if move.endswith("x") else 1
    if move.startswith("shear"):
        matrix[row, 1 - row] = value
    else:
        matrix[row, 2] = -value
    return matrix
