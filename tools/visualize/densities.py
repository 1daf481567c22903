"""Distributions over the epochs: per-pair losses with CCD's mixtures, and similarities of right and wrong pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from processor.history import BIN_EDGES, EpochHistory
from tools.visualize.runs import Run, labels
from utils.figures import CLEAN, NOISY, draw_losses, save

_LOSS_EPOCHS, _SIMILARITY_EPOCHS = 5, 8
_COLUMNS = 4
_OVERLAP = 1.6  # height of a ridge in distances between two
_SMOOTH = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)


def _spread(count: int, wanted: int) -> list[int]:
    """Positions of up to `wanted` of `count`, evenly, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


def losses_over_epochs(run: Run, file: Path) -> bool:
    """Histograms of the per-pair losses, by the truth, with both components; False where nothing was divided."""
    divided = [epoch for epoch in run.history if epoch.pairs is not None]
    if not divided:
        return False
    chosen = [divided[n] for n in _spread(len(divided), _LOSS_EPOCHS)]
    figure, rows = plt.subplots(
        2, len(chosen), figsize=(2.2 * len(chosen) + 0.6, 4), layout="constrained", squeeze=False, sharex=True
    )
    for number, (name, row) in enumerate(zip(("BGE", "TSE"), rows, strict=True)):
        for axes, epoch in zip(row, chosen, strict=True):
            kept = np.isfinite(epoch.pairs.scaled_loss[number])
            components = epoch.pairs.components[number]
            if kept.any():
                fitted = components if np.isfinite(components).all() else None
                draw_losses(axes, epoch.pairs.scaled_loss[number, kept], fitted, epoch.pairs.truly_clean[kept])
            axes.set_title(f"{name}, epoch {epoch.epoch}", fontsize=9)
            axes.tick_params(labelsize=7)
    rows[0, -1].legend(fontsize=8)
    figure.supxlabel("per-pair loss, scaled", fontsize=9)
    figure.supylabel("density", fontsize=9)
    save(figure, file)
    return True


def similarities_over_epochs(runs: Sequence[Run], file: Path) -> bool:
    """The density of positive and negative similarities over training, a field a run (paper, figure 3).

    False where no run has kept any.
    """
    shown = [run for run in runs if any(epoch.similarity is not None for epoch in run.history)]
    if not shown:
        return False
    titles = labels(shown) if len(shown) > 1 else ["validation, BGE+TSE"]
    columns, rows = min(_COLUMNS, len(shown)), -(-len(shown) // _COLUMNS)
    size = (3.6 * columns + 1, 4 * rows + 0.2)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for axes, run, title in zip(grid.flat, shown, titles, strict=False):
        epochs = [epoch for epoch in run.history if epoch.similarity is not None]
        _ridges(axes, [epochs[n] for n in _spread(len(epochs), _SIMILARITY_EPOCHS)])
        axes.set_title(title, fontsize=9)
    limits = [axes.get_xlim() for axes in grid.flat[: len(shown)]]
    for axes in grid.flat[: len(shown)]:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    for row in grid:
        row[0].set_ylabel("epoch")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    save(figure, file)
    return True


def _ridges(axes: plt.Axes, epochs: Sequence[EpochHistory]) -> None:
    """A line for each epoch, later ones below, each density to the same scale."""
    middles = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
    densities = np.array([[_density(counts) for counts in epoch.similarity] for epoch in epochs])  # (E, 2, bins)
    height = _OVERLAP / densities.max()
    for place, (positive, negative) in zip(range(len(epochs), 0, -1), densities, strict=True):
        for values, colour, line, label in (
            (negative, NOISY, "--", "of another person"),
            (positive, CLEAN, "-", "of the caption's person"),
        ):
            named = label if place == len(epochs) else None
            top, order = place + height * values, len(epochs) - place
            axes.fill_between(middles, place, top, color=colour, alpha=0.35, zorder=order, linewidth=0)
            axes.plot(middles, top, line, color=colour, linewidth=1, zorder=order, label=named)
    axes.set(xlabel="similarity", yticks=range(len(epochs), 0, -1), yticklabels=[epoch.epoch for epoch in epochs])
    held = np.flatnonzero(densities.max(axis=(0, 1)) > 0.01 * densities.max())
    axes.set_xlim(middles[held[0]] - 0.05, middles[held[-1]] + 0.05)
    axes.grid(axis="x", alpha=0.3)


def _density(counts: np.ndarray) -> np.ndarray:
    """A smoothed density of (bins,) counts."""
    smooth = np.convolve(counts, _SMOOTH / _SMOOTH.sum(), mode="same")
    return smooth / max(1e-12, smooth.sum() * (BIN_EDGES[1] - BIN_EDGES[0]))
