"""Annotations as tables: .csv, .tsv, .parquet, .arrow, and folders of Hugging Face's `datasets`.

Columns are the keys of `datasets.annotations`. Embedded images are written out once, under a name derived from their
content. Parquet and Arrow are read by pyarrow (requirements-tables.txt).
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from utils.distributed import main_process_first
from utils.encoding import not_utf8
from utils.errors import DataError, brief
from utils.files import atomic_write

TABLES = (".csv", ".tsv", ".parquet", ".arrow")
_BINARY = (".parquet", ".arrow")
_SPLIT = re.compile(r"(train|val|valid|validation|test)(?=$|[-._])")
_IMAGE_KEYS = ("file_path", "img_path", "image", "image_path")
_ROWS = 64  # number read at a time, with their images


class Row(dict[str, Any]):
    """A row; `where` is its place in the file, such as "line 3"."""

    def __init__(self, cells: Mapping[str, Any], where: str) -> None:
        super().__init__(cells)
        self.where = where


def read_table(path: Path) -> list[Row]:
    """The entries of a table or folder of tables, one per row, unchecked.

    Raises:
        DataError: it can't be read, pyarrow is missing, or embedded images can't be written.
    """
    images = _image_folder(path)
    with main_process_first():
        return [_entry(row, images, path) for row in _rows(path)]


def read_rows(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns and numbered non-empty rows of a text table: tabs in a .tsv, else commas, semicolons or tabs.

    Raises:
        DataError: it can't be read, or isn't a CSV file in UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            delimiter = "\t" if file.suffix == ".tsv" else max(",;\t", key=header.count)
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=delimiter)
            columns = list(reader.fieldnames or ())
            rows = ((reader.line_num, row) for row in reader)
            return columns, [(line, row) for line, row in rows if any((row[name] or "").strip() for name in columns)]
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{not_utf8(file)} (Excel: save as 'CSV UTF-8')") from None
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}") from None


def _rows(path: Path) -> Iterator[Row]:
    """All rows; the split defaults to the file's name."""
    if path.suffix not in _BINARY and path.is_file():
        yield from (Row(cells, f"line {line}") for line, cells in read_rows(path)[1])
        return
    numbers = count()
    for file in _files(path):
        name = _SPLIT.match(file.name) or _SPLIT.match(file.parent.name)
        defaults = {"split": name[1]} if name and path.is_dir() else {}
        try:
            for batch in _batches(file):
                yield from (Row(defaults | row, f"entry {next(numbers)}") for row in batch.to_pylist())
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are subclasses of these
            raise DataError(f"{file} can't be read: {brief(error)}") from None


def _files(path: Path) -> list[Path]:
    """The tables of a folder: those that `save_to_disk` lists, else all Parquet files."""
    if path.is_file():
        return [path]
    states = [path / "state.json"] if (path / "state.json").is_file() else sorted(path.glob("*/state.json"))
    try:
        files = [
            state.parent / part["filename"]
            for state in states
            for part in json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: a state.json in it is damaged: {brief(error)}") from None
    files = files or sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path} contains no data set: expected Parquet files, or what datasets.save_to_disk writes")
    return files


def _batches(file: Path) -> Iterator[Any]:
    """Record batches of a Parquet file, or of a file in Arrow's file or stream format."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{file} needs pyarrow: pip install -r requirements-tables.txt ({error})") from None
    if file.suffix == ".parquet":
        with parquet.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=_ROWS)
        return
    with arrow.memory_map(str(file)) as source:
        try:
            batches = iter(arrow.ipc.open_stream(source))
        except arrow.ArrowInvalid:
            reader = arrow.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        for batch in batches:
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _entry(entry: Row, images: Path, table: Path) -> Row:
    """Convert a row to an entry as in JSON, with numeric ids, a list of captions, and an image path."""
    for key in ("id", "image_id"):
        value: Any = entry.get(key)
        if isinstance(value, str) and not re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value.strip()):
            continue
        if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
            entry[key] = int(value)
    captions = entry.pop("captions", None) if "captions" in entry else entry.pop("caption", None)
    try:
        entry["captions"] = _captions(captions)
    except ValueError as error:
        raise DataError(f"{table}, {entry.where}: {error}") from None
    for key in _IMAGE_KEYS:
        value = entry.get(key)
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            for name in _IMAGE_KEYS:
                entry.pop(name, None)
            name = str((isinstance(value, dict) and value.get("path")) or "")
            entry["file_path"] = _write_image(content, name, images)
            break
        if isinstance(value, dict):
            entry[key] = value.get("path")
    return entry


def _captions(value: Any) -> Any:
    """Captions as a list, from a list, a JSON or Python list in a string, or a single string.

    Raises:
        ValueError: a string looks like a list, but isn't a list of strings.
    """
    if isinstance(value, str) and (text := value.strip()).startswith("[") and text.endswith("]"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = _python_list(text)
    return [value] if isinstance(value, str) else (value or [])


def _python_list(text: str) -> list[str]:
    """The list of strings that pandas wrote as `text`."""
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        content = ast.literal_eval(text)
        # NumPy writes arrays without commas, and Python would join their strings.
        if all(isinstance(item, str) for item in content) and "".join(repr(content).split()) == "".join(text.split()):
            return content
    raise ValueError(f"captions must be a text or a list of texts, as json.dumps writes it, found {text!r:.60}")


def _image_folder(path: Path) -> Path:
    """Folder for embedded images: beside the table, else in the user's cache folder."""
    parent = path if path.is_dir() else path.parent
    if os.access(parent, os.W_OK):
        return parent / f".{path.stem}_images"
    return Path.home() / ".cache" / "rde" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _write_image(content: bytes, name: str, folder: Path) -> str:
    """Write an embedded image to a file whose name ends in `name`; returns its absolute path."""
    name = re.sub(r"[^\w.-]", "_", Path(name).name)[-60:] or "image"
    file = (folder / f"{hashlib.blake2b(content, digest_size=12).hexdigest()}_{name}").absolute()
    if not file.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if not file.is_file():  # else written by another process: image caches depend on its time stamp
                    with atomic_write(file) as partial:
                        partial.write_bytes(content)
        except OSError as error:
            raise DataError(f"embedded images can't be written into {folder}: {error.strerror}") from None
    return str(file)
