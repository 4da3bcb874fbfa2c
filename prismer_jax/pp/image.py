"""Ops that read and resize the photo and all its label maps together; those of augment.py also cut and mirror them.

Photos are uint8 RGB [H, W, 3] after `decode`, label maps uint8 [h, w, c] of their own size: every geometric op is
written in relative coordinates, so that a label pixel stays on what it labels.
"""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from prismer_jax import label_png, labels
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import regular
from prismer_jax.pp.labels import maps, resample, same_proportions
from prismer_jax.pp.ops import Example, Op, register

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # max_pixels refuses them by name
cv2.setNumThreads(0)  # parallel over examples; OpenCV's own threads would only compete

Size = int | tuple[int, int]
JPEG_END = b"\xff\xd9"
NEWER = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"avif", b"avis"))
JPEG_XL = (b"\xff\n", b"\0\0\0\x0cJXL ")
UNREAD = "image of a kind that is not read (save it as JPEG)"  # the reason of all these, and of folders that hold them
EXIF_ORIENTATION = 0x0112
TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
UPRIGHT = {2 + i: Image.Transpose[turn] for i, turn in enumerate(TURNS)}  # EXIF orientation -> what sets pixels upright


@register
def decode(max_pixels: int = label_png.MAX_PIXELS) -> Op:
    """Decodes the photo to upright uint8 RGB [H, W, 3], and its label maps to uint8 [h, w, c].

    A photo is bytes, a path, an image of Pillow or an array that is decoded already. Of an example with a list of
    photos, or an empty one, all are decoded; such an example has no label maps.

    Photos of any kind that Pillow reads become RGB: grey, palettes, CMYK, 16 bits (the high byte), and transparency
    on white; EXIF orientation is applied. Labels must have the upright photo's size or its proportions.

    Raises (the op):
      BadSample: names the file: missing, empty, truncated, no image, over max_pixels, or a label that does not fit.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if isinstance(example["image"], list):
            photos = [dict(example, image=photo) for photo in example["image"]]
            return dict(example, image=[read_image(one["image"], max_pixels, _name(one, "image")) for one in photos])
        if example["image"] is None:  # of a text alone
            return dict(example)
        image = read_image(example["image"], max_pixels, _name(example, "image"))
        out = dict(example, image=image)
        for name, value in maps(example).items():
            key = f"labels/{name}"
            out[key] = _read_label(name, value, image.shape[:2], _name(example, key), _name(example, "image"))
        return out

    return op


def _name(example: Example, key: str) -> str:
    """Returns what a message calls this file."""
    value = example[key]
    return value if isinstance(value, str) else f"{key} of example {example.get('id', '?')}"


def read_image(source: bytes | str | Image.Image | np.ndarray, max_pixels: int, where: str) -> np.ndarray:
    """Returns a photo as upright uint8 RGB [H, W, 3]; see `decode`.

    The reasons of its BadSamples: missing photo, unreadable file, empty file, not an image, image of a kind that is
    not read, damaged image, too many pixels, array of another kind.
    """
    if isinstance(source, np.ndarray):
        return checked(source, 3, where)
    opened = isinstance(source, Image.Image)
    data = None if opened else read_bytes(source, where)
    if data == b"":
        raise BadSample(f"{where}: the file is empty. Fetch the photo again or take it off the list.", "empty file")
    try:
        image = source if opened else Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise BadSample(f"{where}: more pixels than any photo has.", "too many pixels") from None
    except Exception as error:
        what, reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else error, "not an image"
        if data[4:12] in NEWER or data.startswith(JPEG_XL):
            what, reason = "HEIC, AVIF or JPEG XL, which this Pillow lacks: save it as JPEG", UNREAD
        if data[:100].lstrip().lower().startswith((b"<!doctype", b"<html")):
            what = "a web page"
        raise BadSample(f"{where}: not a readable image ({what}).", reason) from None
    try:
        if label_png.too_large(*image.size, max_pixels):
            raise BadSample(
                f"{where}: {image.width}x{image.height} pixels are more than decode's max_pixels={max_pixels}, or than "
                f"{label_png.MAX_SIDE} on a side.",
                "too many pixels",
            )
        if (pixels := None if opened else _jpeg(image, data)) is None:
            pixels = to_rgb(image, where)
        if (turn := orientation(image)) in UPRIGHT:  # of what was loaded: Pillow turns a TIFF and takes the tag away
            pixels = np.array(Image.fromarray(pixels).transpose(UPRIGHT[turn]))
        return pixels
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on broken files
        raise BadSample(f"{where}: not a readable image ({error}).", "damaged image") from None


def checked(array: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Returns an array that is uint8 [h, w, channels]; raises BadSample of another, or of one without pixels."""
    if array.dtype != np.uint8 or array.shape[2:] != (channels,) or not array.size:
        said = f"an array of {array.dtype} {list(array.shape)}. Give uint8 [height, width, {channels}], from 0 to 255"
        raise BadSample(f"{where}: {said}.", "array of another kind")
    return array


def _jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """OpenCV decodes JPEG twice as fast to the same bytes; it is only trusted with whole files of plain colour."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or not data.endswith(JPEG_END):
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of the pixels that Pillow gives, now or, if they are not loaded yet, as stored."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing; the photo itself may be whole
        return 1


def read_bytes(source: bytes | str, where: str) -> bytes:
    """Returns the bytes of a file, or those that are given.

    Raises:
      BadSample: there is no such file, it cannot be read, it is a pipe or a device, or this is no path.
    """
    if isinstance(source, bytes):
        return source
    try:
        return regular.read(source)
    except (OSError, TypeError, ValueError) as error:  # a name that no file can have is a ValueError
        reason = "missing photo" if isinstance(error, FileNotFoundError) else "unreadable file"
        raise BadSample(f"{where}: {getattr(error, 'strerror', None) or error}.", reason) from None


def to_rgb(image: Image.Image, where: str) -> np.ndarray:
    """Returns the pixels as uint8 RGB [h, w, 3], as `decode` says; raises BadSample of those without a range."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow before 11 says I
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadSample(
            f"{where}: pixels of mode {image.mode} have no defined range; save it with 8 bits a channel.",
            "pixels without a range",
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _read_label(
    name: str, source: bytes | str | np.ndarray, photo: tuple[int, int], where: str, image: str
) -> np.ndarray:
    label = source if isinstance(source, np.ndarray) else label_png.decode(name, read_bytes(source, where), where)
    if label is None:
        return labels.blank(name, *photo)
    (h, w), (height, width) = checked(label, labels.EXPERTS[name].channels, where).shape[:2], photo
    if same_proportions((h, w), photo):
        return label
    turned = " It fits the photo as stored, not as its EXIF orientation shows it." if (w, h) == photo else ""
    raise BadSample(f"{where} ({w}x{h}) does not fit {image} ({width}x{height}).{turned} Make the label again.")


@register
def resize(size: Size, label_size: Size | None = None) -> Op:
    """Resizes the photo to `size` (int or (height, width)) by Pillow's antialiased bicubic filter, labels by nearest.

    Proportions are not kept, as in the reference. Label maps get `label_size`, by default `size` too; the reference
    has 224 whatever the photo's.
    """
    shape, label_shape = shapes(size, label_size)

    def op(example: Example, rng: np.random.Generator) -> Example:
        return dict(example, image=resized(one_photo(example, "resize"), shape)) | resample(example, label_shape)

    return op


def one_photo(example: Example, op: str) -> np.ndarray:
    """Returns the photo that an op takes; raises BadSample where there is none, UserError where there are others."""
    image, name = example["image"], f"example {example.get('id', '?')}"
    if image is None:
        raise BadSample(f"{name} has no photo, which {op} takes.", "no photo")
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise UserError(f"{op}: takes one decoded photo; {name} has none. Put it between decode and tiles, or nowhere.")
    return image


def shapes(size: Size, label_size: Size | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (height, width) of the photo and of its label maps; raises UserError for what is no size."""
    pair = [(s, s) if isinstance(s, int) else tuple(s) for s in (size, size if label_size is None else label_size)]
    for shape in pair:
        if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
            raise UserError(f"A size is a positive number of pixels or (height, width), not {shape}.")
    return pair[0], pair[1]


def resized(image: np.ndarray, shape: tuple[int, int], method: int = Image.Resampling.BICUBIC) -> np.ndarray:
    """Resizes a photo uint8 [H, W, 3] to shape (height, width), as Pillow does with antialiasing."""
    if image.shape[:2] == shape:
        return image
    # Rows first, then columns: the result is rounded to 8 bits in between, and Pillow 13 takes the cheaper one first.
    narrowed = Image.fromarray(image).resize((shape[1], image.shape[0]), method)
    return np.asarray(narrowed.resize((shape[1], shape[0]), method))
