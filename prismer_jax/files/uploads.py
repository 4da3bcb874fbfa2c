"""Photos that arrive as a zip, as a browser uploads them."""

from __future__ import annotations

import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike


def unpack(files: Mapping[str, bytes], folder: PathLike) -> str:
    """Unpacks an uploaded zip of a folder of photos.

    Args:
      files: {name: bytes}, as google.colab.files.upload returns it.
      folder: where to; what is there already stays.

    Returns:
      the unpacked folder that holds `images/`: zips often begin with a folder's name, and macOS puts another beside it.

    Raises:
      UserError: it is not one file, no zip, or has no folder `images`.
    """
    if len(files) != 1:
        raise UserError(f"{len(files)} files were uploaded. Choose one, a zip of the folder that holds images/.")
    ((name, content),), folder = files.items(), pathlib.Path(folder)
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        paths = [os.path.relpath(archive.extract(member, folder), folder) for member in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        # damaged in many ways; RuntimeError of one with a password
        raise UserError(f"{name}: cannot be unpacked ({error}). Upload a zip of the folder of photos.") from None
    inside = {parent for path in paths for parent in pathlib.PurePath(path).parents}  # a name may have '..' in it
    folders = [path for path in inside if path.name == "images" and "__MACOSX" not in path.parts]
    if not folders:
        raise UserError(f"{name}: has no folder images/. Zip the folder that holds images/ and the lists beside it.")
    return str(folder / min(folders, key=lambda path: len(path.parts)).parent)
