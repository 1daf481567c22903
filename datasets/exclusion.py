"""Pairs marked by hand for exclusion from training, in a CSV file such as `python -m tools.audit` writes.

A row is marked by x, yes, true or 1 in the column `exclude`; unmarked rows and other columns are ignored. Marked rows
are compared with the data, so that a file can't be applied to another data set or other noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.annotations import Split
from datasets.tables import read_rows
from utils.errors import DataError

NO_EXCLUSIONS = np.empty(0, np.int64)
_MARKED, _NOT_MARKED = {"x", "yes", "true", "1"}, {"", "no", "false", "0"}
_FORMULA = tuple("=+-@")  # first characters of formulas


def read_excluded(file: Path, split: Split, permutation: np.ndarray) -> np.ndarray:
    """Read and check the marks.

    Args:
        file: a CSV file with commas, semicolons or tabs, and a header. Columns `pair` (index in the training split) and
            `exclude` are required; `image` and `original`, else `caption`, are compared if present.
        permutation: π of the run: pair i has caption π(i).

    Returns:
        Indices of the marked pairs, ascending.

    Raises:
        DataError: see `read_marks`; or no pair is marked, or every pair.
    """
    excluded = read_marks(file, split, permutation)
    if not excluded:
        raise DataError(f"{file} marks no pair: write an x into the column exclude")
    if len(excluded) == len(permutation):
        raise DataError(f"{file} excludes every pair: nothing is left to train on")
    return np.array(sorted(excluded))


def read_marks(file: Path, split: Split, permutation: np.ndarray) -> set[int]:
    """Indices of the marked pairs, possibly none; for arguments see `read_excluded`.

    Raises:
        DataError: an invalid table, an unknown mark or pair, or a pair of other data; the message names the line.
    """
    rows = [(f"{file}, line {line}", row) for line, row in _read_rows(file)]
    return {_check_pair(row, split, permutation, where) for where, row in rows if is_marked(row, where)}


def is_marked(row: Mapping[str, str], where: str) -> bool:
    """Whether a row is marked in the column `exclude`.

    Raises:
        DataError: an unknown mark.
    """
    mark = (row["exclude"] or "").strip().lower()
    if mark not in _MARKED | _NOT_MARKED:
        raise DataError(f"{where}: exclude must be x or empty, found {mark!r:.40}")
    return mark in _MARKED


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows."""
    columns, rows = read_rows(file)
    for name in ("pair", "exclude"):
        if name not in columns:
            found = ", ".join(columns)[:80] or "none"
            raise DataError(f"{file} has no column '{name}', but {found}: python -m tools.audit writes such a file")
    return rows


def _check_pair(row: Mapping[str, str], split: Split, permutation: np.ndarray, where: str) -> int:
    """The row's pair, checked against its image and caption; the latter may be edited if `original` is there."""
    pair = pair_of(row, split, permutation, where)
    caption = split.captions[permutation[pair]]
    if original := (row.get("original") or "").strip():
        same = original == original_of(caption)
    else:
        same = not row.get("caption") or same_caption(row["caption"], caption)
    if not same:
        raise DataError(
            f"{where}: pair {pair} has another caption, {as_text(caption)!r:.60}: made for other data or noise? "
            "(for edited captions use --corrections)"
        )
    return pair


def original_of(caption: str) -> str:
    """Digest of a caption; it starts with a letter, so that spreadsheets don't read it as a number."""
    return "c" + hashlib.sha256(" ".join(as_text(caption).split()).encode()).hexdigest()[:8]


def same_caption(cell: str, caption: str) -> bool:
    """Whether a cell contains a caption; spreadsheets may keep or drop the apostrophe that marks text."""
    return cell.removeprefix("'").split() == as_text(caption).removeprefix("'").split()


def pair_of(row: Mapping[str, str], split: Split, permutation: np.ndarray, where: str) -> int:
    """The row's pair, checked against the image that the row names.

    Raises:
        DataError: no such pair, or another image.
    """
    text = (row["pair"] or "").strip()
    if not text.isdecimal() or int(text) >= len(permutation):
        raise DataError(f"{where}: pair {text!r:.40} is not in 0 … {len(permutation) - 1:,}")
    pair = int(text)
    image = as_text(split.images[split.caption_images[pair]].as_posix())
    if (cell := row.get("image")) and not any(_ends_with(image, path) for path in (cell, cell.removeprefix("'"))):
        raise DataError(f"{where}: pair {pair} has the image {image}, not {cell}: made for other data?")
    return pair


def _ends_with(path: str, end: str) -> bool:
    return f"/{path}".endswith((f"/{end}", f"/{end.strip()}"))


def as_text(text: str) -> str:
    """The text with lone surrogates, which UTF-8 can't encode, replaced by question marks."""
    return text.encode("utf-8", "replace").decode()


def as_cell(text: str) -> str:
    """The text for a spreadsheet cell, after an apostrophe if it would be read as a formula."""
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r", "\n")) else text
