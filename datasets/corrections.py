"""Captions corrected by hand or by a captioner, in a table such as `python -m tools.audit` writes.

A row whose caption differs from its pair's is a correction: the pair is trained with the row's caption. Marked rows are
excluded, as in `datasets.exclusion`. The column `original` has a digest of the caption before any correction.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.annotations import Split
from datasets.exclusion import as_cell, as_text, is_marked, original_of, pair_of, same_caption
from datasets.tables import read_rows
from utils.errors import DataError


class Edits(NamedTuple):
    """The changes in a table: excluded pairs, and new captions by pair."""

    excluded: set[int]
    captions: dict[int, str]

    @property
    def about(self) -> dict[str, int | str]:
        """Number and digest of the corrected captions, for a run's configuration."""
        lines = [f"{pair}\0{as_text(caption)}\n" for pair, caption in sorted(self.captions.items())]
        return {"captions": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


NO_EDITS = Edits(set(), {})


def read_corrections(file: Path, split: Split, permutation: np.ndarray) -> Edits:
    """Read and check a table for training.

    Args:
        file: a CSV file with commas, semicolons or tabs, and a header. Columns `pair` (index in the training split),
            `caption`, and `image` or `original` are required; `exclude` is optional.
        permutation: π of the run: pair i has caption π(i).

    Raises:
        DataError: see `read_edits`; or the table changes nothing, or leaves no pair to train on.
    """
    edits = read_edits(file, split, permutation)
    if not edits.excluded and not edits.captions:
        raise DataError(f"{file} changes no caption and marks no pair: edit its column caption, and save it")
    if len(edits.excluded) == len(permutation):
        raise DataError(f"{file} excludes every pair: nothing is left to train on")
    return edits


def read_edits(file: Path, split: Split, permutation: np.ndarray) -> Edits:
    """Read the changes in a table, possibly none; for arguments see `read_corrections`.

    Raises:
        DataError: an invalid table, a pair of other data or noise, or an empty caption; the message names the line.
    """
    columns, rows = read_rows(file)
    for names in (("pair",), ("caption",), ("image", "original")):
        if not set(names) & set(columns):
            found = ", ".join(columns)[:80] or "none"
            raise DataError(f"{file} has no column {' or '.join(names)}, but {found}: tools.audit writes such a file")
    edits, lines = Edits(set(), {}), {}
    for line, row in rows:
        where = f"{file}, line {line}"
        pair = pair_of(row, split, permutation, where)
        if lines.setdefault(pair, line) != line:
            raise DataError(f"{where}: pair {pair} is also in line {lines[pair]}")
        caption = split.captions[permutation[pair]]
        if (original := (row.get("original") or "").strip()) and original != original_of(caption):
            raise DataError(
                f"{where}: pair {pair} had another caption than {caption!r:.60}: made for other data or noise?"
            )
        if "exclude" in row and is_marked(row, where):
            edits.excluded.add(pair)
        elif not same_caption(cell := row["caption"] or "", caption):
            if not cell.strip():
                raise DataError(f"{where}: pair {pair} has an empty caption: write one, or mark the pair to exclude it")
            edits.captions[pair] = _cell_text(cell)
    return edits


def _cell_text(cell: str) -> str:
    """A cell's text without the apostrophe that keeps spreadsheets from reading it as a formula."""
    text = cell.removeprefix("'")
    return text if as_cell(text) == cell else cell
