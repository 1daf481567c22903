"""The results of a search as a table, JSON, and a contact sheet with scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from prettytable import PrettyTable

from datasets.images import open_rgb
from tools.search.search import Hit
from tools.search.texts import one_line
from utils.errors import printable
from utils.figures import Cell, picture_rows
from utils.files import write_text

CELL = (160, 64)  # height, width
_SHEET_QUERIES, _SHEET_HITS = 20, 10


def table(title: str, hits: Sequence[Hit]) -> str:
    """One query's results as a table with every embedding's score."""
    rows = PrettyTable(["", "score", *(hits[0].scores if hits else ()), "file"], align="r")
    rows.align["file"] = "l"
    for hit in hits:
        scores = [f"{value:.3f}" for value in (hit.score, *hit.scores.values())]
        rows.add_row([hit.rank, *scores, printable(str(hit.file))])
    return f"{one_line(title)}\n{rows.get_string()}"


def output_stem(out: Path, name: str) -> Path:
    """Path of the output files for `--out`, without suffix; `name` inside it if it is a folder."""
    if out.is_dir():
        return out / name
    return out.with_suffix("") if out.suffix in (".json", ".png") else out


def write_json(content: object, out: Path) -> Path:
    """Write `out`.json."""
    file = out.with_name(f"{out.name}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=1) + "\n")
    return file


def write(queries: Sequence[str], similarity: str, results: Sequence[Sequence[Hit]], out: Path) -> tuple[Path, Path]:
    """Write `out`.json and `out`.png; the sheet shows the first 20 queries with ten results each."""
    out = output_stem(out, "query")
    content = [
        {"query": query, "similarity": similarity, "results": [hit.asdict() for hit in hits]}
        for query, hits in zip(queries, results, strict=True)
    ]
    listing, sheet = write_json(content, out), out.with_name(f"{out.name}.png")
    rows = [
        (one_line(query), [Cell(thumbnail(hit.file, CELL), f"{hit.score:.3f}") for hit in hits[:_SHEET_HITS]])
        for query, hits in zip(queries[:_SHEET_QUERIES], results, strict=False)
    ]
    picture_rows(rows, sheet)
    return listing, sheet


def thumbnail(file: Path, size: tuple[int, int]) -> Image.Image:
    """The whole image, upright, on a white (height, width) canvas; a grey one if it can't be read any more."""
    height, width = size
    try:
        picture = open_rgb(file, size, upright=True)
    except Exception:  # Pillow's decoders raise many types
        return Image.new("RGB", (width, height), "#bbbbbb")
    scale = min(width / picture.width, height / picture.height)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])  # at least one pixel
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return canvas
