"""The file of a list: JSON, JSON lines, a table with a header, Flickr's captions, Parquet. Told by the content."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from prismer_jax.datasets import captions
from prismer_jax.datasets.formats.row import ANSWER_KEYS, CAPTION_KEYS
from prismer_jax.errors import UserError
from prismer_jax.files import parquet
from prismer_jax.files.storage import PathLike

LINES = (".jsonl", ".ndjson", ".jsonlines")  # endings of files that have an object a line
PHOTO_KEYS = (  # where an entry names its photo, the surest first
    "image",
    "file_name",
    "image_path",
    "img_path",
    "image_file",
    "image_name",
    "filename",
    "file_path",
    "filepath",
    "img",
    "photo",
    "path",
    "file",
    "images",
)
_OTHERS = {  # files that are no lists, by their first bytes
    b"\x1f\x8b": "is packed with gzip. Unpack it first",
    b"PK\x03\x04": "is a zip archive. Unpack it, and give the list that is in it",
    b"\xff\xfe": "is UTF-16. Save it as UTF-8",
    b"\xfe\xff": "is UTF-16. Save it as UTF-8",
    b"\x80": "is a Python pickle, which can run code when it is read. Save its content as JSON",
    b"version https://git-lfs": "is a pointer of Git LFS. Fetch the file with `git lfs pull`",
    b"<": "is a web page or XML. Fetch the list again, or convert it to JSON",
}
_TOKEN = re.compile(r"(\S[^\t#]*)#\d+\t(.*)")  # Flickr8k.token.txt, results_20130124.token: photo#number, tab, caption
_PHOTO = re.compile(r"[^\t\n,;|]+\.(?:jpe?g|png|webp|bmp|gif|tiff?)", re.IGNORECASE)
_TEXTS = frozenset((*CAPTION_KEYS, *ANSWER_KEYS))  # columns in whose cells a list may be written
_DELIMITERS = "\t,;|"


def read(path: PathLike) -> Any:
    """Returns the content of a file: what its JSON holds, or a list of an object for each line or row.

    Bytes that are not UTF-8 become surrogates, so that one such caption can be told from the others and left out.

    Raises:
      UserError: it cannot be read, or is of another kind, which is named; of a malformed file the line is.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Give photos without a list as `images`, tars as `tars`.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if data.startswith(b"PAR1"):
        return _parquet(path)
    for head, problem in _OTHERS.items():
        if data.startswith(head):
            raise UserError(f"{path}: {problem}.")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    start = re.match(r"\s*(\S?)", text)[1]
    if start not in ("[", "{"):
        return _table(text, path)
    if start == "{" and path.suffix.lower() in LINES:
        return _lines(text, path)
    try:
        content = json.loads(text)
        if isinstance(content, dict) and all("." in name for name in content):  # it may name a photo for each caption
            return json.loads(text, object_pairs_hook=_joined)
        return content
    except json.JSONDecodeError as error:
        # Hugging Face's Dataset.to_json and pandas write lines into files that they call .json.
        if error.msg == "Extra data" and "\n" in text[: error.pos]:
            return _lines(text, path)
        raise UserError(f"{path}: line {error.lineno} is not JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise UserError(f"{path}: cannot be read as JSON: {error}.") from None


def _joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the dict of an object in JSON, in which a key that stands several times has the values of all in a list.

    Raises:
      ValueError: such a value is no text and no list of texts.
    """
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            if not all(isinstance(one, str | list) for one in (content[key], value)):
                raise ValueError(f"{key!r} stands there twice")
            before, more = (one if isinstance(one, list) else [one] for one in (content[key], value))
            value = before + more
        content[key] = value
    return content


def _lines(text: str, path: pathlib.Path) -> list[Any]:
    content = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                content.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON: {getattr(error, 'msg', error)}.") from None
    return content


def _table(text: str, path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a table by the names in its header; without one, of photos and captions."""
    if "\n" not in text:
        text = text.replace("\r", "\n")  # the line ends of old Macs
    start = re.match(r"(?:\s*\n)?", text).end()
    blank, text = text.count("\n", 0, start), text[start:]
    head = text.split("\n", 1)[0].strip("\r ")
    if _TOKEN.fullmatch(head):
        return [
            {"image": match[1].strip(), "caption": match[2]} if (match := _TOKEN.fullmatch(line)) else {"line": line}
            for line in text.replace("\r\n", "\n").split("\n")
            if line.strip()
        ]
    for delimiter in _DELIMITERS:
        names = _names(head, delimiter)
        if has_header := bool(set(names) & set(PHOTO_KEYS)):
            break
        if len(names) == 2 and _PHOTO.fullmatch(names[0]):
            names = ["image", "caption"]
            break
    else:
        raise UserError(
            f"{path}: is neither JSON nor a table of photos: its first line is {head[:60]!r}. A table begins with the "
            "names of its columns, such as image,caption."
        )
    shared = {name for name in names if name and names.count(name) > 1}
    if twice := shared & {"question_id", "qa_id"}:
        raise UserError(f"{path}: has several columns {min(twice)!r}. Rename all but the one with the questions' ids.")
    rows = [_cells(names, shared, row) for row in _rows(text, delimiter, path, blank)]
    return rows[has_header:]


def _names(head: str, delimiter: str) -> list[str]:
    """Returns the cells of a table's first line as names of columns; none of a line that is no row."""
    try:
        return [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _rows(text: str, delimiter: str, path: pathlib.Path, line: int) -> Iterator[list[str]]:
    """Yields the cells of each row of a table, whose text begins behind so many lines of its file.

    Raises:
      UserError: a row has quotation marks or line ends that leave open where its cells end; names the line.
    """
    # Flickr30k's results.csv has a space before each cell and quotes none, so that a caption may begin with a mark.
    spaced = delimiter == "|"
    lines = io.StringIO(text, newline="\n")  # csv refuses a \r in a cell that is not quoted
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=not spaced, strict=True)
    swallowed, before = re.compile(rf"\n{_PHOTO.pattern} *{re.escape(delimiter)}", re.IGNORECASE), 0
    try:
        for row in reader:
            if reader.line_num - before > 1 and any(map(swallowed.search, row)):
                raise csv.Error("a quoted cell goes on over other rows")
            before = reader.line_num
            if row:
                yield [cell.strip() for cell in row] if spaced else row
    except csv.Error as error:
        raise UserError(
            f"{path}: line {line + before + 1} is not a row of a table: {str(error).partition(' - ')[0]}. Put a cell "
            "with quotation marks or line ends in quotation marks, and write those inside twice."
        ) from None


def _cells(names: list[str], shared: Collection[str], row: list[str]) -> dict[Any, Any]:
    """Returns the cells of a row by the names of their columns; those of columns that share a name in a list."""
    cells: dict[Any, Any] = {name: cell or None for name, cell in zip(names, row, strict=False)}
    cells.update(dict.fromkeys(names[len(row) :]))
    for name in shared:
        cells[name] = [cell for other, cell in zip(names, row, strict=False) if other == name and cell]
    for name in _TEXTS.intersection(cells):
        cells[name] = _unlisted(cells[name])
    if len(row) > len(names):
        cells[None] = row[len(names) :]
    # A table has no types: an id that is written as a number is one.
    if (id := cells.get("question_id")) and re.fullmatch(r"0|[1-9][0-9]{0,17}", id):
        cells["question_id"] = int(id)
    return cells


def _unlisted(cell: Any) -> Any:
    """Returns the texts of a cell in which a list stands as pandas or a person writes it; another cell as it is."""
    if isinstance(cell, list):
        return [text for one in map(_unlisted, cell) for text in (one if isinstance(one, list) else [one])]
    if not cell or cell[0] != "[" or (texts := captions.listed(cell)) is None:
        return cell
    return texts


def _parquet(path: pathlib.Path) -> list[dict[str, Any]]:
    if photos := parquet.Table(path).photo_columns():
        raise UserError(
            f"{path}: is Parquet with the photos themselves in its column {photos[0]!r}: it is no list. Give it as "
            "--parquet, the data set `parquet`."
        )
    return parquet.read(path)
