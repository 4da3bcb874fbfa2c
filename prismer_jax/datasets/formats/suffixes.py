"""By which suffixes photos are known, and which of them Pillow, as it is installed here, reads."""

from __future__ import annotations

from PIL import Image, features

from prismer_jax.pp import image

# Of cameras, phones, browsers and archives; JPEG 2000, AVIF and HEIC are read only by some builds of Pillow.
PHOTOS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".heic", ".heif", ".hif", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Of drawings, layers and raw sensors, whose pixels are for a program of their own to work out.
OTHERS = (
    *(".svg", ".psd", ".ico", ".tga", ".exr", ".hdr", ".eps"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
UNREAD_REASON = image.UNREAD  # what the bytes of such a photo are refused for where its name does not tell


def _is_read(suffix: str) -> bool:
    kind = Image.registered_extensions().get(suffix)
    return kind in Image.OPEN and (kind != "JPEG2000" or features.check("jpg_2000"))


SUFFIXES = tuple(suffix for suffix in PHOTOS if _is_read(suffix))
UNREAD = tuple(suffix for suffix in (*PHOTOS, *OTHERS) if suffix not in SUFFIXES)
