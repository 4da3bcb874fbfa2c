"""What the page takes from a visitor, and how often; no Gradio is needed for it."""

import io
import os
import pathlib
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from prismer_jax.errors import BadSample
from tools.demo.limits import Limits, Rate, read_photo, sweep

LIMITS = Limits()


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def header_of(width, height):
    """A PNG of a hundred bytes whose header claims this size."""
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(99)),
        b"IEND",
    ]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.png is empty: it has 0 bytes. Choose another file."),
        (b"a text, and no photo", "x.png: not a readable image"),
        (b"<!doctype html><p>moved</p>", "a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, AVIF or JPEG XL, which this Pillow lacks: save it as JPEG"),
        (encoded(Image.new("RGB", (64, 64)))[:60], "x.png: not a readable image"),
        (header_of(20_000, 10_000), "x.png has more than 50 million pixels. Make it smaller."),
        (header_of(8_000, 8_000), "x.png has more than 50 million pixels. Make it smaller."),
        (bytes((20 << 20) + 1), "x.png has more than 20 MB. Make it smaller."),
    ],
    ids=["empty", "text", "web page", "heic", "cut", "200 megapixels", "64 megapixels", "too many bytes"],
)
def test_what_is_no_photo_is_refused_in_one_line(data, message):
    with pytest.raises(BadSample, match=re.escape(message)) as refused:
        read_photo(data, "x.png", LIMITS)
    assert "\n" not in str(refused.value)


def test_photos_are_upright_rgb_and_no_larger_than_the_model_needs():
    photo = read_photo(encoded(Image.new("RGB", (3000, 1500), "red"), "JPEG"), "x", LIMITS)
    assert photo.shape == (512, 1024, 3)
    assert (photo[256, 512] > [250, -1, -1]).all()
    thin = read_photo(encoded(Image.new("L", (3000, 1))), "x", LIMITS)
    assert thin.shape == (1, 1024, 3)
    small = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    np.testing.assert_array_equal(read_photo(encoded(Image.fromarray(small)), "x", LIMITS), small)
    clear = read_photo(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), "x", LIMITS)
    assert (clear == 255).all()  # transparency is white


def test_each_address_has_its_requests_a_minute():
    now = 0.0
    rate = Rate(2, clock=lambda: now)
    assert [rate.wait("a"), rate.wait("a"), rate.wait("b")] == [0, 0, 0]
    now = 10.5
    assert rate.wait("a") == 50  # a refusal counts for nothing
    assert rate.wait("a") == 50
    assert rate.wait("b") == 0
    now = 60.0
    assert [rate.wait("a"), rate.wait("a")] == [0, 0]
    assert rate.wait("a") == 60
    now = 121.0
    rate.wait("c")
    assert set(rate._taken) == {"c"}  # of those who have gone nothing is kept


def test_files_that_nobody_read_are_swept(tmp_path):
    names = ["kept.png", "deep/old.png", "new.png"]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    for path in paths[:2]:
        os.utime(path, (time.time() - 100,) * 2)
    sweep(tmp_path, {paths[0]}, 60)
    assert [path.exists() for path in paths] == [True, False, True]
    sweep(pathlib.Path(tmp_path / "absent"), (), 0)
