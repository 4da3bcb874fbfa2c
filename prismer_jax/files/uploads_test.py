import io
import pathlib
import zipfile

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files import uploads

PHOTOS = ["images/1.jpg", "images/images/2.jpg", "captions_train.json"]


def zipped(*names, how=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


def changed(place, byte):
    """Returns a zip of one photo with one byte in another's place."""
    content = bytearray(zipped("images/1.jpg", how=zipfile.ZIP_DEFLATED))
    content[place] = byte
    return bytes(content)


@pytest.mark.parametrize("inside", [".", "my_photos", "a/my photos"])
def test_the_folder_that_holds_the_photos_is_found(tmp_path, inside):
    mac = f"__MACOSX/{inside}/images/._1.jpg"
    content = zipped(mac, *(pathlib.PurePosixPath(inside, name).as_posix() for name in PHOTOS))
    data = pathlib.Path(uploads.unpack({"photos.zip": content}, tmp_path / "data"))
    assert data == tmp_path / "data" / inside
    assert all((data / name).is_file() for name in PHOTOS)
    again = uploads.unpack({"others.zip": zipped("others/images/1.jpg")}, tmp_path / "data")
    assert pathlib.Path(again) == tmp_path / "data/others"


@pytest.mark.parametrize("inside", ["../photos", "/photos", "a/../../photos", "./photos"])
def test_names_that_lead_out_of_the_folder_are_found_where_they_were_unpacked(tmp_path, inside):
    (tmp_path / "data").mkdir()
    content = zipped(*(f"{inside}/{name}" for name in PHOTOS))
    data = pathlib.Path(uploads.unpack({"photos.zip": content}, tmp_path / "data/../data"))
    assert all((data / name).is_file() for name in PHOTOS)
    assert data.resolve().is_relative_to(tmp_path / "data")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "0 files were uploaded"),
        ({"a.zip": b"", "b.zip": b""}, "2 files were uploaded"),
        ({"a.jpg": b"\xff\xd8\xff"}, r"a\.jpg: cannot be unpacked"),
        ({"a.zip": zipped("1.jpg", "captions_train.json")}, r"a\.zip: has no folder images/"),
        ({"a.zip": zipped("images")}, r"a\.zip: has no folder images/"),
        ({"a.zip": changed(42, 255)}, r"a\.zip: cannot be unpacked \(Error -3 while decompressing"),
        ({"a.zip": changed(-5, 1)}, r"a\.zip: cannot be unpacked"),
    ],
)
def test_what_is_no_zip_of_photos_is_one_line(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        uploads.unpack(files, tmp_path)
    assert "\n" not in str(error.value)
