"""House style of figures. Colours are distinguishable for colour-blind readers and in greyscale."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot, as there may be no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.files import atomic_write

matplotlib.rcParams["pdf.fonttype"] = 42  # TrueType fonts: searchable text, required by conferences
matplotlib.rcParams["text.parse_math"] = False  # dollar signs in captions and paths aren't formulas
TITLE_LINE = 0.17  # inches
CLEAN, NOISY, BLACK = "#0072B2", "#D55E00", "#000000"


def save(figure: Figure, file: Path) -> None:
    """Write and close a figure; without a suffix, as PNG and PDF."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files = [file] if file.suffix else [file.with_name(f"{file.name}.{kind}") for kind in ("png", "pdf")]
    with warnings.catch_warnings():  # captions may be in any script; missing glyphs are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        for file in files:
            with atomic_write(file) as partial:
                kind = file.suffix.removeprefix(".")
                figure.savefig(partial, format=kind, dpi=120 if kind == "png" else 200)
    plt.close(figure)


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Up to `limit` of `count` indices, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def over_epochs(axes: Axes, what: str) -> None:
    """Label the x-axis with epochs and the y-axis with `what`."""
    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def legend_below(figure: Figure, grid: Iterable[Axes]) -> None:
    """Draw one legend below all axes, with the entries of all of them."""
    handles = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        columns = min(len(handles), max(2, int(figure.get_figwidth() / 1.5)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)


@dataclass(frozen=True)
class Cell:
    """A picture with a line of text above it and, if `frame` is a colour, a frame."""

    picture: Image.Image
    title: str
    frame: str | None = None


def picture_rows(rows: Sequence[tuple[str, Sequence[Cell]]], file: Path, title: str = "") -> None:
    """Draw rows of text and pictures below a title."""
    columns = max(len(cells) for _, cells in rows)
    head = TITLE_LINE * (title.count("\n") + 1) if title else 0
    size, widths = (3 + 0.72 * columns, 1.75 * len(rows) + head), [3.6] + [1] * columns
    figure, grid = plt.subplots(len(rows), columns + 1, figsize=size, squeeze=False, width_ratios=widths)
    edge = 0.2 / size[1]
    top = 1 - edge * 1.3 - head / size[1]
    figure.subplots_adjust(left=0.02, right=0.98, bottom=edge / 3, top=top, wspace=0.1, hspace=0.18)
    figure.text(0.02, 1 - 0.04 / size[1], title, va="top", fontsize=8)
    for axes in grid.flat:
        axes.axis("off")
    for (text, cells), row in zip(rows, grid, strict=True):
        row[0].text(0, 0.5, wrap(text), va="center", fontsize=8)
        for cell, axes in zip(cells, row[1:], strict=False):
            axes.axis("on")
            axes.imshow(cell.picture, aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.set_title(cell.title.replace("$", r"\$"), fontsize=8, pad=3)
            for side in axes.spines.values():
                side.set(color=cell.frame or "#999999", linewidth=3 if cell.frame else 0.5)
    save(figure, file)


def wrap(caption: str, width: int = 34, lines: int = 9) -> str:
    """Wrap and truncate a caption to fit its cell."""
    caption = caption.encode("utf-8", "replace").decode()  # lone surrogates can't be drawn
    return "\n".join(textwrap.wrap(caption, width, max_lines=lines, placeholder=" …"))
