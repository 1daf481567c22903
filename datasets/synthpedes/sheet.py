"""A contact sheet for the README: one row per person, with their images and one of their captions."""

import json
import textwrap
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .write import ANNOTATIONS, Record

_CELL_W, _CELL_H = 72, 192
_GAP = 8
_TEXT_W = 330
_FONT_SIZE = 17
_CHARS_PER_LINE = 38
_COLOURS_KEPT = 256  # a palette PNG has a third of the size


def contact_sheet(folder: Path, out: Path, rows: int = 5, columns: int = 3, split: str = "train") -> None:
    """Draw `rows` persons of a split as a PNG: up to `columns` images each, then their longest caption.

    Raises ValueError if the split has fewer than `rows` persons.
    """
    people: dict[int, list[Record]] = defaultdict(list)
    for record in json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8")):
        if record["split"] == split:
            people[record["id"]].append(record)
    if len(people) < rows:
        raise ValueError(f"{split} has {len(people)} persons, fewer than {rows} rows")
    step = len(people) // rows
    chosen = [people[pid] for pid in sorted(people)[::step][:rows]]

    size = (columns * (_CELL_W + _GAP) + _GAP + _TEXT_W, rows * (_CELL_H + _GAP) + _GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for row, records in enumerate(chosen):
        _draw_row(sheet, folder, records[:columns], top=_GAP + row * (_CELL_H + _GAP), columns=columns)
    sheet.quantize(_COLOURS_KEPT, kmeans=4).save(out, optimize=True)


def _draw_row(sheet: Image.Image, folder: Path, records: list[Record], top: int, columns: int) -> None:
    for column, record in enumerate(records):
        with Image.open(folder / "imgs" / record["file_path"]) as image:
            cell = image.resize((_CELL_W, _CELL_H), Image.Resampling.BICUBIC)
        sheet.paste(cell, (_GAP + column * (_CELL_W + _GAP), top))
    text = textwrap.fill(max((c for r in records for c in r["captions"]), key=len), _CHARS_PER_LINE)
    place = (2 * _GAP + columns * (_CELL_W + _GAP), top + _CELL_H // 2)
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(sheet).multiline_text(place, text, fill=(40, 40, 46), font=font, anchor="lm", spacing=6)
