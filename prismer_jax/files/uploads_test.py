import io
import pathlib
import zipfile

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files import uploads

PHOTOS = ["images/1.jpg", "images/images/2.jpg", "captions_train.json"]


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


@pytest.mark.parametrize("inside", [".", "my_photos", "a/my photos"])
def test_the_folder_that_holds_the_photos_is_found(tmp_path, inside):
    mac = f"__MACOSX/{inside}/images/._1.jpg"
    content = zipped(mac, *(pathlib.PurePosixPath(inside, name).as_posix() for name in PHOTOS))
    data = pathlib.Path(uploads.unpack({"photos.zip": content}, tmp_path / "data"))
    assert data == tmp_path / "data" / inside
    assert all((data / name).is_file() for name in PHOTOS)
    again = uploads.unpack({"others.zip": zipped("others/images/1.jpg")}, tmp_path / "data")
    assert pathlib.Path(again) == tmp_path / "data/others"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "0 files were uploaded"),
        ({"a.zip": b"", "b.zip": b""}, "2 files were uploaded"),
        ({"a.jpg": b"\xff\xd8\xff"}, r"a\.jpg: cannot be unpacked"),
        ({"a.zip": zipped("1.jpg", "captions_train.json")}, r"a\.zip: has no folder images/"),
        ({"a.zip": zipped("images")}, r"a\.zip: has no folder images/"),
    ],
)
def test_what_is_no_zip_of_photos_is_one_line(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        uploads.unpack(files, tmp_path)
    assert "\n" not in str(error.value)
