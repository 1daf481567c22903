"""A run's pictures. Colours can be told apart by colour-blind readers and in grey print."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt
from PIL import Image

from utils.files import in_one_step

matplotlib.rcParams["pdf.fonttype"] = 42  # letters that can be searched, as conferences want them
matplotlib.rcParams["text.parse_math"] = False  # a pair of dollar signs in a caption or a path is no formula
CLEAN, NOISY, BOTH = "#0072B2", "#D55E00", "#000000"
STYLES = {"BGE": ("#56B4E9", "--"), "TSE": ("#E69F00", ":"), "BGE+TSE": (BOTH, "-")}


class Vote(Protocol):
    """What is drawn of a vote: (N,) scaled losses; (2, 3) weight, mean, variance of the mixture or None."""

    loss: np.ndarray
    components: np.ndarray | None


def save(figure: plt.Figure, file: Path) -> None:
    """Write and close a figure: a name without a suffix becomes a PNG and a PDF."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files = [file] if file.suffix else [file.with_name(f"{file.name}.{kind}") for kind in ("png", "pdf")]
    with warnings.catch_warnings():  # captions may be in any script; what the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        for file in files:
            with in_one_step(file) as partial:
                kind = file.suffix.removeprefix(".")
                figure.savefig(partial, format=kind, dpi=120 if kind == "png" else 200)
    plt.close(figure)


def r1_per_epoch(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """R1 on the validation split over the epochs (paper, figure 5)."""
    records = [record for record in records if "val" in record]
    if not records:
        return
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name, (colour, line) in STYLES.items():
        r1 = [record["val"][name]["R1"] for record in records]
        axes.plot([record["epoch"] for record in records], r1, line, color=colour, marker=".", label=name)
    over_epochs(axes, "R1 on validation (%)")
    axes.legend()
    save(figure, file)


def over_epochs(axes: plt.Axes, what: str) -> None:
    """Label axes with epochs below and `what` at the left."""
    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def loss_histogram(votes: Mapping[str, Vote], truly_clean: np.ndarray, epoch: int, file: Path) -> None:
    """Per-pair losses by the truth, with the two components that CCD fitted to them."""
    figure, rows = plt.subplots(1, len(votes), figsize=(4.5 * len(votes), 3.2), layout="constrained", squeeze=False)
    for axes, (name, vote) in zip(rows[0], votes.items(), strict=True):
        draw_losses(axes, vote.loss, vote.components, truly_clean)
        axes.set(title=f"{name}, epoch {epoch}", xlabel="per-pair loss, scaled", ylabel="density")
    legend_below(figure, rows[0])
    save(figure, file)


def legend_below(figure: plt.Figure, grid: Iterable[plt.Axes]) -> None:
    """One legend below all axes, of everything that any of them names."""
    named = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        columns = min(len(named), max(2, int(figure.get_figwidth() / 1.5)))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=9)


def draw_losses(axes: plt.Axes, loss: np.ndarray, components: np.ndarray | None, truly_clean: np.ndarray) -> None:
    """The density of (N,) scaled losses by the truth (N,), stacked, and both components (2, 3) over it.

    Where no pair is known to be noisy nothing is claimed of them.
    """
    bins = np.linspace(0, 1, 61)
    parts, colours, labels = (
        [loss[truly_clean], loss[~truly_clean]],
        [(CLEAN, 0.75), (NOISY, 0.4)],
        ["truly clean", "truly noisy"],
    )
    if truly_clean.all():
        parts, colours, labels = [loss], ["#999999"], ["pairs"]
    share = [np.full(len(part), 1 / (len(loss) * (bins[1] - bins[0]))) for part in parts]
    axes.hist(parts, bins, weights=share, stacked=True, color=colours, label=labels)
    if components is None:
        return
    x = np.linspace(0, 1, 400)
    for (weight, mean, variance), line, name in zip(components, ("-", "--"), ("clean", "noisy"), strict=True):
        density = weight * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        axes.plot(x, density, line, color=BOTH, linewidth=1.2, label=f"fitted: {name}")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.05)


def retrieval_sheet(
    similarity: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    captions: Sequence[str],
    paths: Sequence[Path],
    file: Path,
    *,
    top: int = 5,
) -> None:
    """The `top` images for a few captions, framed by right and wrong.

    Args:
        similarity: (captions, images).
    """
    rows = []
    for caption, scores, pid in zip(captions, similarity, query_pids, strict=True):
        cells = []
        for image in np.argsort(-scores, kind="stable")[:top]:
            right = gallery_pids[image] == pid
            with Image.open(paths[image]) as picture:
                shown = picture.convert("RGB").resize((64, 160))
            title = f"{'✓' if right else '✗'} {scores[image]:.2f}"
            cells.append(Cell(shown, title, CLEAN if right else NOISY))
        rows.append((caption, cells))
    picture_rows(rows, file)


@dataclass(frozen=True)
class Cell:
    """A picture with a line above it and, where `frame` is a colour, a frame."""

    picture: Image.Image
    title: str
    frame: str | None = None


def picture_rows(rows: Sequence[tuple[str, Sequence[Cell]]], file: Path) -> None:
    """Rows of a text and pictures."""
    columns = max(len(cells) for _, cells in rows)
    size, widths = (3 + 0.72 * columns, 1.75 * len(rows)), [3.6] + [1] * columns
    figure, grid = plt.subplots(len(rows), columns + 1, figsize=size, squeeze=False, width_ratios=widths)
    edge = 0.2 / size[1]
    figure.subplots_adjust(left=0.02, right=0.98, bottom=edge / 3, top=1 - edge * 1.3, wspace=0.1, hspace=0.18)
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
    """A caption cut to fit its cell."""
    caption = caption.encode("utf-8", "replace").decode()  # half a surrogate pair can't be drawn
    return "\n".join(textwrap.wrap(caption, width, max_lines=lines, placeholder=" …"))
