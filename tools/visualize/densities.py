"""Distributions over epochs: per-pair losses with CCD's mixtures, and similarities of positive and negative pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from processor.figures import draw_losses
from processor.history import BIN_EDGES
from tools.visualize.runs import NothingToDraw, Run, labels
from utils.figures import CLEAN, NOISY, evenly_spaced, legend_below, save

_LOSS_EPOCHS, _SIMILARITY_EPOCHS = 5, 8
_COLUMNS = 4
_OVERLAP = 1.6  # height of a ridge, relative to the distance between two
_BIN_CENTRES = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2
_SMOOTH = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)


def losses_over_epochs(run: Run, file: Path) -> None:
    """Draw histograms of per-pair losses by ground truth, with the fitted mixture components.

    Raises:
        NothingToDraw: no division is recorded.
        DataError: the run's history is damaged.
    """
    divided = [epoch for epoch in run.history if epoch.pairs is not None]
    if not divided:
        raise NothingToDraw("no per-pair losses in epochs/")
    chosen = [divided[n] for n in evenly_spaced(len(divided), _LOSS_EPOCHS)]
    names = chosen[0].pairs.names
    size = (2.2 * len(chosen) + 0.8, 2.2 * len(names))
    figure, rows = plt.subplots(len(names), len(chosen), figsize=size, layout="constrained", squeeze=False, sharex=True)
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        for axes, epoch in zip(row, chosen, strict=True):
            finite = np.isfinite(epoch.pairs.scaled_loss[number])
            components = epoch.pairs.components[number]
            if finite.any():
                fitted = components if np.isfinite(components).all() else None
                draw_losses(axes, epoch.pairs.scaled_loss[number, finite], fitted, epoch.pairs.truly_clean[finite])
            axes.set_title(f"{name}, epoch {epoch.epoch}", fontsize=9)
            axes.tick_params(labelsize=7)
        row[0].set_ylabel("density", fontsize=8)
    for axes in rows[-1]:
        axes.set_xlabel("per-pair loss, scaled", fontsize=8)
    legend_below(figure, rows.flat)
    save(figure, file)


def similarities_over_epochs(runs: Sequence[Run], file: Path) -> None:
    """Draw the density of positive and negative similarities over training, one panel per run, on a shared scale
    (paper, figure 3).

    Raises:
        NothingToDraw: no similarities are recorded.
        DataError: a run's history is damaged.
    """
    recorded = [(run, [epoch for epoch in run.history if epoch.similarity is not None]) for run in runs]
    recorded = [
        (run, [epochs[n] for n in evenly_spaced(len(epochs), _SIMILARITY_EPOCHS)]) for run, epochs in recorded if epochs
    ]
    if not recorded:
        raise NothingToDraw("no similarities in epochs/")
    titles = labels([run for run, _ in recorded]) if len(recorded) > 1 else [""]
    columns, rows = min(_COLUMNS, len(recorded)), -(-len(recorded) // _COLUMNS)
    size = (3.6 * columns + 1, 4 * rows + 0.2)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(recorded) :]:
        axes.axis("off")
    densities = [
        np.array([[_density(counts) for counts in epoch.similarity] for epoch in epochs]) for _, epochs in recorded
    ]
    highest = max(density.max() for density in densities)
    for axes, (run, epochs), density, title in zip(grid.flat, recorded, densities, titles, strict=False):
        _ridges(axes, [epoch.epoch for epoch in epochs], density * (_OVERLAP / highest))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(f"similarity on {run.split_title}, {run.fused}")
    occupied = np.flatnonzero(np.max([density.max(axis=(0, 1)) for density in densities], axis=0) > 0.01 * highest)
    limits = (_BIN_CENTRES[occupied[0]] - 0.05, _BIN_CENTRES[occupied[-1]] + 0.05)
    lowest, top = zip(*(axes.get_ylim() for axes in grid.flat[: len(recorded)]), strict=True)
    for axes in grid.flat[: len(recorded)]:
        axes.set(xlim=limits, ylim=(min(lowest), max(top)))
    for row in grid:
        row[0].set_ylabel("epoch")
    legend_below(figure, grid[0, :1])
    save(figure, file)


def _ridges(axes: Axes, epochs: Sequence[int], densities: np.ndarray) -> None:
    """Draw (E, 2, bins) densities, in units of the ridge distance, as one ridge per epoch, later ones below."""
    for order, (positive, negative) in enumerate(densities):
        for values, colour, line, name in (
            (negative, NOISY, "--", "of another person"),
            (positive, CLEAN, "-", "of the caption's person"),
        ):
            axes.fill_between(_BIN_CENTRES, -order, values - order, color=colour, alpha=0.35, zorder=order, linewidth=0)
            axes.plot(_BIN_CENTRES, values - order, line, color=colour, linewidth=1, zorder=order, label=name)
    axes.set(yticks=-np.arange(len(epochs)), yticklabels=epochs)
    axes.grid(axis="x", alpha=0.3)


def _density(counts: np.ndarray) -> np.ndarray:
    """A smoothed density of (bins,) counts."""
    smooth = np.convolve(counts, _SMOOTH / _SMOOTH.sum(), mode="same")
    return smooth / max(1e-12, smooth.sum() * (BIN_EDGES[1] - BIN_EDGES[0]))
