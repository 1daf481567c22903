"""Annotation files as lists of entries: JSON and JSON Lines; `datasets.tables` reads tables."""

from __future__ import annotations

import json
from pathlib import Path

from datasets.tables import TABLES, read_table
from utils.encoding import not_utf8
from utils.errors import DataError


def read_entries(file: Path) -> list:
    """The entries of a JSON list, a JSON Lines file (`.jsonl`), or a table or folder of tables, unchecked.

    Raises:
        DataError: the file can't be read, or isn't a list.
    """
    if file.is_dir() or file.suffix in TABLES:
        return read_table(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            return [_line_of_json(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        entries = json.loads(text)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(not_utf8(file)) from None
    except (ValueError, RecursionError) as error:
        kind = "JSON Lines file" if file.suffix == ".jsonl" else "JSON file (JSON Lines end in .jsonl)"
        raise DataError(f"{file} is not a {kind}: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{file}: expected a list of entries, found {type(entries).__name__}")
    return entries


def _line_of_json(line: str, number: int) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
