import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps, features

from prismer_jax import label_files, labels, pp
from prismer_jax.errors import BadSample, UserError
from prismer_jax.pp import augment, randaugment
from prismer_jax.pp.image_size import image_size
from prismer_jax.pp.labels import resample

IDS = ("seg_coco", "obj_detection", "ocr_detection")


def encode(array, kind="png", **options) -> bytes:
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height=40, width=60) -> np.ndarray:
    """A colourful photo without sharp edges, so that JPEG changes it little."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 5, 255 - x * 2 - y * 2], axis=-1).astype(np.uint8)


def run(spec, example, seed=0):
    return pp.build(spec)({"id": "x", **example}, np.random.default_rng(seed))


def all_labels(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"labels/{n}": rng.integers(0, 100, (height, width, e.channels), np.uint8) for n, e in labels.EXPERTS.items()
    }


def as_kinds() -> dict[str, tuple[bytes, np.ndarray]]:
    """Encoded photos of every kind, with the RGB pixels they mean."""
    photo = smooth()
    grey = photo[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    palette = Image.fromarray(photo).quantize(16)
    clear = np.dstack([photo, np.where(np.arange(60) < 30, 255, 0)[None].repeat(40, 0)]).astype(np.uint8)
    on_white = np.where(clear[..., 3:] == 255, photo, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown rotated by 90 degrees
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(photo, exif=exif))))
    return {
        "png": (encode(photo), photo),
        "grey": (encode(grey), three),
        "16 bits": (encode(grey.astype(np.uint16) * 257), three),
        "bits": (encode(Image.fromarray(grey > 99)), np.repeat(255 * (grey > 99)[..., None], 3, 2)),
        "palette": (encode(palette), np.asarray(palette.convert("RGB"))),
        "transparent": (encode(clear), on_white),
        "turned": (encode(photo, exif=exif), np.asarray(turned)),
        "webp": (encode(photo, "webp", lossless=True), photo),
        "bmp": (encode(photo, "bmp"), photo),
    }


@pytest.mark.parametrize("kind", as_kinds())
def test_photos_of_every_kind_become_rgb(kind):
    data, expected = as_kinds()[kind]
    image = run("decode", {"image": data})["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def turned(kind: str, orientation: int, **options) -> tuple[bytes, np.ndarray]:
    """Returns a photo with an EXIF orientation, and the pixels that Pillow's own function makes of it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(), kind, exif=exif, **options)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    return data, np.asarray(ImageOps.exif_transpose(loaded).convert("RGB"))


TURNED_KINDS = ["jpeg", "png", "tiff", "webp", *(["avif"] if features.check("avif") else [])]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED_KINDS)
def test_turned_photos_stand_upright(kind, orientation):
    data, expected = turned(kind, orientation)
    assert expected.shape == ((60, 40, 3) if orientation > 4 else (40, 60, 3))
    np.testing.assert_array_equal(run("decode", {"image": data})["image"], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compressed_grey_and_palette_tiffs_are_turned_once(orientation):
    upright = turned("png", orientation)[1]
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        data, expected = turned("tiff", orientation, compression=compression)
        np.testing.assert_array_equal(expected, upright)
        np.testing.assert_array_equal(run("decode", {"image": data})["image"], upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = smooth()[..., 0].astype(np.uint16) * 257
    decoded = run("decode", {"image": encode(grey, "tiff", exif=exif)})["image"]
    np.testing.assert_array_equal(decoded, np.repeat(upright[..., :1], 3, axis=2))


def with_late_exif(png: bytes) -> bytes:
    """Returns a PNG whose EXIF block is behind the pixels, as some writers have it."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", png[start : start + 4])[0]
    return png[:start] + png[end:-12] + png[start:end] + png[-12:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_the_size_that_the_photo_will_have(orientation, tmp_path):
    photos = {kind: turned(kind, orientation)[0] for kind in TURNED_KINDS}
    photos["late"] = with_late_exif(photos["png"])
    for kind, data in photos.items():
        path = tmp_path / f"photo.{kind}"
        path.write_bytes(data)
        assert image_size(str(path)) == run("decode", {"image": str(path)})["image"].shape[:2], kind
        assert image_size(str(path)) == ((60, 40) if orientation > 4 else (40, 60)), kind
        assert image_size(data) == image_size(str(path))
    path = tmp_path / "photo.webp"
    with pytest.raises(BadSample, match="pixels are more than"):
        image_size(str(path), max_pixels=2000)
    path.write_bytes(b"")
    with pytest.raises(BadSample, match=r"photo\.webp: the file is empty"):
        image_size(str(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", as_kinds())
def test_images_of_pillow_are_photos_as_their_files_are(kind):
    data, expected = as_kinds()[kind]
    np.testing.assert_array_equal(run("decode", {"image": Image.open(io.BytesIO(data))})["image"], expected)


def test_an_image_of_pillow_that_cannot_be_used_is_named():
    cut = Image.open(io.BytesIO(encode(smooth())[:-60]))
    for image, spec, message in (
        (cut, "decode", r"image of example x: not a readable image"),
        (Image.new("F", (3, 4)), "decode", "pixels of mode F"),
        (Image.new("RGB", (30, 40)), "decode(max_pixels=1000)", "max_pixels=1000"),
    ):
        with pytest.raises(BadSample, match=message):
            run(spec, {"image": image})


def test_photos_with_damaged_exif_are_still_photos():
    data = encode(smooth(), "jpeg", exif=b"Exif\x00\x00MM\x00*garbage")
    assert run("decode", {"image": data})["image"].shape == (40, 60, 3)


def test_jpegs_are_decoded_as_pillow_does(shared, tmp_path):
    """The fast path must not change a bit of what the reference, which uses Pillow, sees."""
    for path in sorted((shared / "data/photos").iterdir()):
        image = run("decode", {"image": str(path)})["image"]
        np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("RGB")))
    for mode in ("L", "CMYK"):
        data = encode(Image.fromarray(smooth()).convert(mode), "jpeg", quality=95)
        image = run("decode", {"image": data})["image"]
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_cmyk_photos_keep_their_colours():
    data = encode(Image.fromarray(smooth()).convert("CMYK"), "jpeg", quality=95)
    assert np.abs(run("decode", {"image": data})["image"].astype(int) - smooth()).mean() < 5


def test_unreadable_photos_name_the_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    jpeg, png = encode(noise, "jpeg"), encode(noise)
    cases = {
        "zero.jpg": (b"", "empty", "empty file"),
        "text.jpg": (b"<html>404</html>", "not a readable image .a web page", "not an image"),
        "page.jpg": (b"\n<!DOCTYPE html>", "not a readable image .a web page", "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated", "damaged image"),
        "cut.png": (png[: len(png) // 2], "truncated", "damaged image"),
        "header.jpg": (jpeg[:20], "not a readable image", "not an image"),
        "float.tiff": (
            encode(Image.fromarray(np.ones((4, 4), np.float32)), "tiff"),
            "mode F",
            "pixels without a range",
        ),
    }
    for name, (data, message, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadSample, match=f"{name}: .*{message}") as error:
            run("decode", {"image": str(tmp_path / name)})
        assert error.value.reason == reason
    with pytest.raises(BadSample, match="No such file") as error:
        run("decode", {"image": str(tmp_path / "absent.jpg")})
    assert error.value.reason == "missing photo"
    with pytest.raises(BadSample, match="image of example x"):
        run("decode", {"image": b""})
    for name in ("a\0.jpg", "\ud800.jpg"):
        with pytest.raises(BadSample) as error:
            run("decode", {"image": name})
        assert error.value.reason == "unreadable file"


@pytest.mark.parametrize("read", [image_size, lambda path: run("decode", {"image": path})])
def test_a_pipe_is_no_photo_and_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "b.jpg")
    with pytest.raises(BadSample, match=r"b\.jpg: Not a regular file") as error:
        read(str(tmp_path / "b.jpg"))
    assert error.value.reason == "unreadable file"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_are_refused_before_they_are_unpacked():
    with pytest.raises(BadSample, match="60x40 pixels"):
        run("decode(max_pixels=2000)", {"image": encode(smooth())})
    small = encode(np.zeros((8, 8), np.uint8))
    for width, height in ((60_000, 60_000), (11_000, 11_000), (40_000, 2)):  # that the header claims
        header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
        bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
        for read in (image_size, lambda data: run("decode", {"image": data})):
            with pytest.raises(BadSample, match="pixels") as error:
                read(bomb)
            assert error.value.reason == "too many pixels"


def test_labels_are_decoded_with_their_photo():
    maps = all_labels(40, 60)
    coded = {key: label_files.encode(label) for key, label in maps.items()}
    out = run("decode", {"image": encode(smooth()), **coded, "labels/edge": b""})
    for key, label in maps.items():
        np.testing.assert_array_equal(out[key], 0 * label if key == "labels/edge" else label)


def test_label_maps_must_have_the_photos_size_or_proportions(tmp_path):
    photo = encode(smooth(40, 60))
    for h, w in [(40, 60), (20, 30), (27, 40), (13, 20), (160, 240)]:
        out = run("decode", {"image": photo, "labels/depth": label_files.encode(labels.blank("depth", h, w))})
        assert out["labels/depth"].shape == (h, w, 1)
    (tmp_path / "d.png").write_bytes(label_files.encode(labels.blank("depth", 60, 40)))
    with pytest.raises(BadSample, match=r"d\.png \(40x60\) does not fit image of example x \(60x40\).*EXIF"):
        run("decode", {"image": photo, "labels/depth": str(tmp_path / "d.png")})
    with pytest.raises(BadSample, match=r"d\.png .*does not fit"):
        run("decode", {"image": encode(smooth(40, 41)), "labels/depth": str(tmp_path / "d.png")})


def bicubic(image, side):
    """Rows first: the order of Pillow up to version 12, which the reference resizes with."""
    narrowed = image.resize((side, image.height), Image.Resampling.BICUBIC)
    return np.asarray(narrowed.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("key", ["image", "labels/depth", "labels/normal"])
def test_arrays_of_another_kind_are_bad_samples(key):
    """A data set of one's own may hold them. Floats from 0 to 1 were labels that are all but black."""
    good = {"image": smooth(), **all_labels(40, 60)}
    assert run("decode|resize(8)", good)["labels/depth"].shape == (8, 8, 1)
    for array in (
        good[key] / 255,
        good[key].astype(np.uint16),
        good[key][..., 0],
        np.repeat(good[key], 2, -1),
        good[key][:0],
    ):
        with pytest.raises(BadSample, match=rf"{key} of example x: an array of {array.dtype} .* Give uint8 \[height"):
            run("decode|resize(8)", good | {key: array})
    with pytest.raises(BadSample, match="object, not bytearray"):
        run("decode", good | {key: bytearray(b"x")})


@pytest.mark.parametrize("spec", ["decode|resize(8)", "decode|stretch(8)"])
def test_an_op_of_photos_names_an_example_without_one(spec):
    with pytest.raises(BadSample, match="has no photo"):
        run(spec, {"image": None})


def test_resize_is_pillows_bicubic_and_nearest():
    maps = all_labels(40, 60)
    out = run("resize(32, label_size=(24, 16))", {"image": smooth(), **maps})
    np.testing.assert_array_equal(out["image"], bicubic(Image.fromarray(smooth()), 32))
    for key, label in maps.items():
        expected = Image.fromarray(label.squeeze()).resize((16, 24), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(out[key].squeeze(), np.asarray(expected))


@pytest.mark.parametrize(("length", "size"), [(640, 224), (480, 224), (96, 96), (7, 100), (333, 480), (100, 1)])
def test_nearest_is_pillows_at_every_scale(length, size):
    row = np.random.default_rng(0).integers(0, 255, (2, length, 1), np.uint8)
    expected = Image.fromarray(row[..., 0]).resize((size, 2), Image.Resampling.NEAREST)
    out = resample({"image": np.zeros((2, length, 3)), "labels/depth": row}, (2, size))
    np.testing.assert_array_equal(out["labels/depth"][..., 0], np.asarray(expected))


def test_random_resized_crop_is_a_crop_then_a_resize():
    maps = all_labels(40, 60)
    out = run("random_resized_crop(32, label_size=16)", {"image": smooth(), **maps}, seed=3)
    top, left, h, w = augment._random_box(40, 60, (0.5, 1.0), (3 / 4, 4 / 3), np.random.default_rng(3))
    assert (h, w) != (40, 60)
    cut = Image.fromarray(smooth()[top : top + h, left : left + w])
    np.testing.assert_array_equal(out["image"], bicubic(cut, 32))
    for key, label in maps.items():
        cut = Image.fromarray(label[top : top + h, left : left + w].squeeze())
        np.testing.assert_array_equal(out[key].squeeze(), np.asarray(cut.resize((16, 16), Image.Resampling.NEAREST)))


@pytest.mark.parametrize(("size", "most"), [(16, 3), (32, 3), (96, 1)])
def test_opencvs_filter_is_near_pillows_and_leaves_labels_as_they_are(size, most):
    """On a photo without sharp edges, whether it grows or shrinks."""
    maps, photo = all_labels(40, 60), smooth() // 2
    out, exact = (
        run(f"random_resized_crop({size}, 16, filter={name!r})", {"image": photo, **maps}, seed=3)
        for name in ("opencv", "pillow")
    )
    assert out["image"].shape == exact["image"].shape == (size, size, 3)
    assert np.abs(out["image"].astype(int) - exact["image"]).mean() < most
    assert not np.array_equal(out["image"], exact["image"])
    assert all(np.array_equal(out[key], exact[key]) for key in maps)
    with pytest.raises(UserError, match="filter"):
        pp.build("random_resized_crop(32, filter='nearest')")


def test_boxes_lie_inside_and_have_the_wanted_area_and_ratio():
    rng = np.random.default_rng(0)
    for height, width in [(100, 100), (480, 640), (30, 400), (1, 1)]:
        for _ in range(50):
            top, left, h, w = augment._random_box(height, width, (0.5, 1.0), (3 / 4, 4 / 3), rng)
            assert 0 <= top <= top + h <= height
            assert 0 <= left <= left + w <= width
            assert min(h, w) > 0
            if height == 100:
                assert 0.48 < h * w / 1e4 <= 1
                assert 0.73 < w / h < 1.36


def test_labels_of_another_size_stay_on_what_they_label():
    """A white square in a photo and its mask, at another resolution, coincide after every geometric op."""
    photo, mask = np.zeros((120, 180, 3), np.uint8), np.full((40, 60, 1), 255, np.uint8)
    photo[30:90, 60:120], mask[10:30, 20:40] = 255, 7
    chains = ["resize(96, label_size=48)", "random_resized_crop(96, label_size=48, scale=(0.6, 1.0))|flip(p=1)"]
    for move in randaugment.GEOMETRY:
        for sign in (1, -1):
            example = run("resize(96, label_size=48)", {"image": photo, "labels/seg_coco": mask})
            _assert_overlap(randaugment.apply(example, move, 7, sign))
    for chain in chains:
        for seed in range(5):
            _assert_overlap(run(chain, {"image": photo, "labels/seg_coco": mask}, seed))


def _assert_overlap(out):
    seen = cv2.resize(out["image"][..., 0], (48, 48), interpolation=cv2.INTER_AREA) > 127
    labelled = out["labels/seg_coco"][..., 0] == 7
    assert (seen & labelled).sum() / (seen | labelled).sum() > 0.93


def test_flip_mirrors_photo_labels_and_the_x_of_normals():
    maps = all_labels(4, 6)
    maps["labels/normal"][0, 0] = 0  # not a direction: nothing there
    out = run("flip(p=1)", {"image": smooth(4, 6), **maps})
    np.testing.assert_array_equal(out["image"], smooth(4, 6)[:, ::-1])
    for name in IDS:
        np.testing.assert_array_equal(out[f"labels/{name}"], maps[f"labels/{name}"][:, ::-1])
    mirrored = maps["labels/normal"][:, ::-1].copy()
    mirrored[..., 0] = 255 - mirrored[..., 0]
    mirrored[0, -1] = 0
    np.testing.assert_array_equal(out["labels/normal"], mirrored)
    out = run("flip(p=1, normals='reference')", {"image": smooth(4, 6), **maps})
    np.testing.assert_array_equal(out["labels/normal"], maps["labels/normal"][:, ::-1])
    assert run("flip(p=0)", maps | {"image": smooth()})["labels/depth"] is maps["labels/depth"]


def test_a_negative_is_the_photos_alone():
    maps = all_labels(4, 6)
    out = run("negative()", {"image": smooth(4, 6), **maps})
    np.testing.assert_array_equal(out["image"], 255 - smooth(4, 6))
    assert all(out[name] is label for name, label in maps.items())


def test_flip_happens_half_of_the_time():
    photo = smooth()
    flipped = [not np.array_equal(run("flip", {"image": photo}, seed)["image"], photo) for seed in range(200)]
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize("move", [*randaugment.GEOMETRY])
def test_geometric_moves_are_pillows_and_fill_labels_with_their_background(move):
    photo = smooth(40, 60)
    maps = all_labels(40, 60)
    out = randaugment.apply({"image": photo, **maps}, move, 10, 1)
    if move == "rotate":
        expected = Image.fromarray(photo).rotate(30, fillcolor=(0, 0, 0))
    else:
        affine = {
            "shear_x": (1, 0.3, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, 0.3, 1, 0),
            "translate_x": (1, 0, 0.33 * 60, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, 0.33 * 40),
        }[move]
        expected = Image.fromarray(photo).transform((60, 40), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out["image"], np.asarray(expected))
    outside = ~randaugment.apply({"image": np.full((40, 60, 3), 9, np.uint8)} | maps, move, 10, 1)["image"].any(-1)
    assert outside.sum() > 50
    for name, expert in labels.EXPERTS.items():
        # Bilinear blending reaches half a pixel further than the nearest rule.
        assert (out[f"labels/{name}"][outside] == expert.fill).mean() > 0.9


@pytest.mark.parametrize("move", [*randaugment.GEOMETRY])
def test_moves_of_large_photos_are_the_same_and_keep_nothing(move, monkeypatch):
    example = {"image": smooth(41, 61), **all_labels(41, 61)}
    expected = randaugment.apply(example, move, 10, -1)
    monkeypatch.setattr(randaugment, "LARGEST", 0)
    randaugment._slide.cache_clear()
    randaugment._sources.cache_clear()
    moved = randaugment.apply(example, move, 10, -1)
    for name in example:
        np.testing.assert_array_equal(moved[name], expected[name])
    assert randaugment._sources.cache_info().currsize == 0
    assert move == "rotate" or randaugment._slide(randaugment._affine(move, 0.1, 61, 41), 61, 41) is None


@pytest.mark.parametrize("shape", [(97, 130), (64, 33), (5, 70), (1, 1)])
@pytest.mark.parametrize("move", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_sliding_is_pillows_to_the_bit(move, shape):
    """Also where strips of rows end, on either side, and for strengths that put pixels on whole numbers."""
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    size = shape[1], shape[0]
    for m in (3.3, 5, 10):
        for sign in (1, -1):
            affine = randaugment._affine(move, sign * randaugment.GEOMETRY[move][1] * m / 10, *size)
            expected = Image.fromarray(photo).transform(
                size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=(0, 0, 0)
            )
            np.testing.assert_array_equal(randaugment.slide(photo, affine), np.asarray(expected))


def test_sliding_by_a_hair_from_a_whole_number_is_pillows_too():
    """Where x + c is rounded, two pixels beside each other have neighbours that are not."""
    photo, affine = np.random.default_rng(0).integers(0, 256, (5, 70, 3), np.uint8), (1, 0, 1 - 2**-52, 0, 1, 0)
    assert randaugment._slide(affine, 70, 5) is None
    expected = Image.fromarray(photo).transform((70, 5), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(randaugment.slide(photo, affine), np.asarray(expected))


@pytest.mark.parametrize("move", ["autocontrast", "equalize"])
def test_contrasts_are_pillows_to_the_bit(move):
    rng = np.random.default_rng(0)
    photos = [np.full((20, 30, 3), 7, np.uint8), np.zeros((1, 1, 3), np.uint8), smooth(200, 250)]
    for low, high, shape in (
        (0, 256, (40, 60, 3)),
        (40, 90, (16, 17, 3)),
        (200, 202, (31, 33, 3)),
        (3, 250, (300, 9, 3)),
    ):
        photos.append(rng.integers(low, high, shape, np.uint8))
    photos.append(np.minimum(photos[-1], (9, 100, 255)).astype(np.uint8))  # channels differ
    for photo in photos:
        out = randaugment.apply({"image": photo}, move, 5, 1)["image"]
        np.testing.assert_array_equal(out, np.asarray(getattr(ImageOps, move)(Image.fromarray(photo))))


@pytest.mark.parametrize("move", ["brightness", "sharpness"])
def test_strength_five_leaves_brightness_and_sharpness_as_pillow_does(move):
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    enhancer = {"brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness}[move]
    for m in (5, 6):
        expected = np.asarray(enhancer(Image.fromarray(photo)).enhance(0.1 + 1.8 * m / 10))
        np.testing.assert_array_equal(randaugment.apply({"image": photo}, move, m, 1)["image"], expected)


@pytest.mark.parametrize("move", randaugment.COLOUR)
def test_colour_moves_leave_labels_alone(move):
    maps = all_labels(40, 60)
    photo = cv2.resize(smooth(8, 12), (60, 40), interpolation=cv2.INTER_NEAREST) // 2 + 20
    out = randaugment.apply({"image": photo, **maps}, move, 8, 1)
    assert not np.array_equal(out["image"], photo)
    assert all(out[key] is label for key, label in maps.items())


def test_randaugment_is_a_function_of_the_rng_and_of_its_strength():
    example = {"image": smooth(), **all_labels(40, 60)}
    for seed in range(3):
        one, two = (run("randaugment(3, 7)", example, seed) for _ in range(2))
        assert all(np.array_equal(one[key], two[key]) for key in example)
    np.testing.assert_array_equal(run("randaugment(0, 5)", example)["image"], example["image"])
    with pytest.raises(UserError, match="0 to 10"):
        pp.build("randaugment(2, 11)")


@pytest.mark.parametrize("op", ["resize(9)", "flip(1.0)", "random_resized_crop(9)", "randaugment", "blip_randaugment"])
def test_ops_that_move_pixels_refuse_other_than_one_photo(op):
    with pytest.raises(
        UserError, match=r"takes one decoded photo; example a has none\. Put it between decode and tiles"
    ):
        run(op, {"id": "a", "image": [smooth(), smooth()]})
    with pytest.raises(BadSample, match=r"example a has no photo, which .* takes"):
        run(op, {"id": "a", "image": None})


@pytest.mark.parametrize(
    ("before", "op"),
    [
        *((before, op) for before in ("tiles(16, max_side=32)|", "") for op in ("label_objects(['a'])", "describe")),
        *(
            (before, op)
            for before in ("tiles(16, max_side=32)|", "stretch(16, frames=2)|", "")
            for op in ("resize(9)", "flip(1.0)", "randaugment", "blip_randaugment", "stretch(9)", "tiles(9)", "outline")
        ),
    ],
)
def test_ops_on_one_photo_stand_behind_decode_and_before_tiles(before, op):
    example = {"id": "a", "image": smooth(), "bbox": [0, 0, 1, 1], "prompt": "?"}
    if "frames" in before:
        example["image"] = [smooth()] * 2
    else:
        ids = labels.blank("obj_detection", 40, 60)
        ids[:9, :9] = 0
        example |= {"labels/obj_detection": ids, labels.CLASSES_KEY: labels.no_classes()}
    if not before:
        example |= {"image": "a.jpg", "labels/obj_detection": "a.png"}
    chain, name = pp.build(before + op, tokenizer=pp.tokenizer.load("scenes")), op.partition("(")[0]
    with pytest.raises(
        UserError, match=rf"{name}: takes one decoded photo; example a has none\. Put it between decode and tiles"
    ):
        chain(example, np.random.default_rng(0))


def test_each_of_several_photos_becomes_its_negative():
    photos = [smooth(), smooth()[:9]]
    for made, photo in zip(run("decode|negative()", {"id": "a", "image": photos})["image"], photos, strict=True):
        np.testing.assert_array_equal(made, 255 - photo)
    assert run("negative()", {"id": "a", "image": []})["image"] == []
    assert run("negative()", {"id": "a", "image": None})["image"] is None


def test_labels_for_keeps_the_wanted_and_fills_the_missing():
    example = {
        "image": encode(smooth()),
        "labels/depth": label_files.encode(labels.blank("depth", 20, 30)),
        "labels/edge": b"",
    }
    for spec in ("labels_for('depth+ocr_detection')|decode", "decode|labels_for('depth+ocr_detection')"):
        out = run(spec, example)
        assert {key for key in out if key.startswith("labels/")} == {
            "labels/depth",
            "labels/ocr_detection",
            labels.WORDS_KEY,
        }
        assert (out["labels/ocr_detection"] == 255).all()
        assert out[labels.WORDS_KEY].shape == (256, 64)
    out = run("labels_for|decode|resize(8)", example)
    assert {f"labels/{name}" for name in labels.PAPER} < set(out)
    assert out["labels/normal"].shape == (8, 8, 3)
    assert (out[labels.CLASSES_KEY] == -1).all()
    assert [key for key in run("labels_for('none')|decode", example) if key.startswith("labels")] == []


def test_labels_for_fills_the_missing_of_tiles():
    example = {"image": smooth(16, 16), "labels/depth": np.zeros((16, 16, 1), np.uint8)}
    behind, ahead = (run(spec, example) for spec in ("tiles(8, 16)|labels_for", "labels_for|tiles(8, 16)"))
    assert behind["labels/normal"].shape == (5, 64, 64, 3)
    for name in ahead:
        np.testing.assert_array_equal(behind[name], ahead[name])


def test_labels_for_keeps_tables_that_are_there():
    table = labels.no_classes()
    table[0] = 5
    example = {"image": encode(smooth()), labels.CLASSES_KEY: table}
    assert run("labels_for|decode", example)[labels.CLASSES_KEY][0] == 5


@pytest.mark.parametrize(
    "spec",
    [
        "resize(0)",
        "resize((4, 5, 6))",
        "resize('big')",
        "stretch(0)",
        "stretch(9, label_size=-1)",
        "tiles(0)",
        "tiles(9, labels=0)",
        "tiles(9, most=0)",
        "flip(2)",
        "noise_labels(num_classes=0)",
        "noise_labels(num_classes=-1)",
        "random_resized_crop(9, scale=(1.0, 0.5))",
        "random_resized_crop(9, ratio=(0, 1))",
        "flip(normals='x')",
        "resiez(9)",
        "random_resized_crop(9, scale=3)",  # of another type
        "randaugment('x')",
    ],
)
def test_wrong_settings_are_user_errors_when_the_chain_is_built(spec):
    with pytest.raises(UserError):
        pp.build(spec)
