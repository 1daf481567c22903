"""A run's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from processor.records import split_title
from solver.correspondence.base import Vote
from utils.figures import BLACK, CLEAN, NOISY, Cell, legend_below, over_epochs, picture_rows, save

_STYLES = {"BGE": ("#56B4E9", "--"), "TSE": ("#E69F00", ":"), "BGE+TSE": (BLACK, "-")}
_COLOURS = ("#009E73", "#CC79A7", "#F0E442", "#999999")  # for other similarities

_TOP = 5  # images per caption
_FRAMES = "✓ blue: correct identity; ✗ orange: wrong identity; with similarities"


def styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each similarity."""
    others = [name for name in names if name not in _STYLES]
    drawn = {name: (_COLOURS[n % len(_COLOURS)], "-.") for n, name in enumerate(others)}
    return {name: (_STYLES | drawn)[name] for name in names}


def r1_per_epoch(records: Sequence[Mapping[str, Any]], best_epoch: int, split: str, file: Path) -> None:
    """Draw R1 over the epochs (paper, figure 5), with the best one marked unless it is 0.

    Args:
        split: the split that the records' "val" was measured on, "val" or "test".
    """
    records = [record for record in records if "val" in record]
    if not records:
        return
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name, (colour, line) in styles(records[0]["val"]).items():
        r1 = [record["val"][name]["R1"] for record in records]
        axes.plot([record["epoch"] for record in records], r1, line, color=colour, marker=".", label=name)
    over_epochs(axes, f"R1 on {split_title(split)} (%)")
    mark_epoch(axes, best_epoch)
    axes.legend()
    save(figure, file)


def mark_epoch(axes: Axes, best_epoch: int) -> None:
    """Draw a line at the best epoch, with a legend entry; nothing for 0."""
    if best_epoch:
        axes.axvline(best_epoch, color="#777777", linestyle=":", linewidth=1, label=f"best: epoch {best_epoch}")


def loss_histogram(votes: Mapping[str, Vote], truly_clean: np.ndarray, epoch: int, file: Path) -> None:
    """Draw histograms of per-pair losses by ground truth, with the two fitted components."""
    figure, rows = plt.subplots(1, len(votes), figsize=(4.5 * len(votes), 3.2), layout="constrained", squeeze=False)
    for axes, (name, vote) in zip(rows[0], votes.items(), strict=True):
        draw_losses(axes, vote.loss, vote.components, truly_clean)
        axes.set(title=f"{name}, epoch {epoch}", xlabel="per-pair loss, scaled", ylabel="density")
    legend_below(figure, rows[0])
    save(figure, file)


def draw_losses(axes: Axes, loss: np.ndarray, components: np.ndarray | None, truly_clean: np.ndarray) -> None:
    """Draw the stacked density of (N,) scaled losses by (N,) ground truth, with both (2, 3) components.

    If no pair is known to be noisy, the truth counts as unknown.
    """
    bins = np.linspace(0, 1, 61).tolist()
    parts, colours, labels = (
        [loss[truly_clean], loss[~truly_clean]],
        [(CLEAN, 0.75), (NOISY, 0.4)],
        ["truly clean", "truly noisy"],
    )
    if truly_clean.all():
        parts, colours, labels = [loss], ["#999999"], ["pairs"]
    height = np.zeros(len(bins) - 1)
    for part, colour, label in zip(parts, colours, labels, strict=True):
        below, height = height, height + np.histogram(part, bins)[0] / (len(loss) * (bins[1] - bins[0]))
        axes.stairs(height, bins, baseline=below, fill=True, color=colour, label=label)  # faster than hist's bars
    if components is None:
        return
    x = np.linspace(0, 1, 400)
    for (weight, mean, variance), line, name in zip(components, ("-", "--"), ("clean", "noisy"), strict=True):
        density = weight * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        axes.plot(x, density, line, color=BLACK, linewidth=1.2, label=f"fitted: {name}")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.05)


@dataclass(frozen=True)
class Ranked:
    """A caption with its (images,) similarities, and which images show its person."""

    caption: str
    scores: np.ndarray
    correct: np.ndarray


def retrieval_sheet(captions: Sequence[Ranked], paths: Sequence[Path], title: str, file: Path) -> None:
    """Draw the best images for a few captions, framed as right or wrong; `title` names the ranking."""
    rows = []
    for ranked in captions:
        cells = []
        for image in np.argsort(-ranked.scores, kind="stable")[:_TOP]:
            correct = ranked.correct[image]
            with Image.open(paths[image]) as picture:
                thumbnail = picture.convert("RGB").resize((64, 160))
            label = f"{'✓' if correct else '✗'} {ranked.scores[image]:.2f}"
            cells.append(Cell(thumbnail, label, CLEAN if correct else NOISY))
        rows.append((ranked.caption, cells))
    picture_rows(rows, file, f"{title}\n{_FRAMES}")
