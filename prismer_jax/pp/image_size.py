"""The size of a photo from the header of its file, without its pixels."""

from __future__ import annotations

import io

from PIL import Image

from prismer_jax import label_png
from prismer_jax.files import regular
from prismer_jax.pp.image import orientation, read_image

TIFF_SIZE = (0x0100, 0x0101)  # the tags of width and height, as stored
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations of which width becomes height


def image_size(
    source: bytes | str, max_pixels: int = label_png.MAX_PIXELS, where: str | None = None
) -> tuple[int, int]:
    """Returns `read_image`'s (height, width), from the header of the file (encoded bytes or a path) alone.

    Only a PNG without EXIF in its header is unpacked, since the block may lie behind the pixels, too. What cannot be
    opened raises as `read_image` does; `where` is what its message calls bytes.
    """
    where = where or (source if isinstance(source, str) else "a photo")
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else regular.opened(source) as file,
            Image.open(file) as image,
        ):
            width, height = image.size
            if not label_png.too_large(width, height, max_pixels):
                if image.format == "TIFF":  # whose `size` is turned already in some versions of Pillow, in others not
                    width, height = (image.tag_v2[tag] for tag in TIFF_SIZE)
                return (width, height) if orientation(image) in SIDEWAYS else (height, width)
    except Exception:  # whatever is wrong, reading it whole says what
        pass
    return read_image(source, max_pixels, where).shape[:2]
