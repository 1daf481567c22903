"""R1 per epoch of a table's rows, a line each, from before training on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from tools.reproduce.runs import Run
from tools.visualize.curves import LINES
from utils.figures import over_epochs, save


def draw_curves(rows: Sequence[Sequence[Run]], file: Path) -> bool:
    """Draw the mean over each row's seeds, and from the lowest to the highest in a lighter tone.

    Epoch 0 is the pretrained CLIP, by its own embedding. Rows that are read off the same run as another with the same
    similarity are drawn once. Returns whether there was a row to draw.
    """
    drawn = {}
    for runs in rows:
        row = runs[0].row
        curves = [curve for run in runs if (curve := _curve(run))]
        if curves and not row.start and not row.target:
            drawn.setdefault((row.slug, row.similarity), (f"{row.title}, {row.noise:.0%} noise", curves))
    if not drawn:
        return False
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for number, (title, curves) in enumerate(drawn.values()):
        colour, line, marker = LINES[number % len(LINES)]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        r1 = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # (seeds, epochs)
        axes.plot(epochs, r1.mean(axis=0), line, color=colour, marker=marker, markersize=3, label=title)
        axes.fill_between(epochs, r1.min(axis=0), r1.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    over_epochs(axes, "R1 on test (%)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, file)
    return True


def _curve(run: Run) -> dict[int, float]:
    """R1 (%) on the test split by epoch; none of a run that is not finished."""
    folder = run.finished()
    if folder is None:
        return {}
    start = folder.start_metrics().get("test", {})
    first = next(iter(start), "")  # the others are untrained then
    curve = {0: start[first]["R1"]} if first in run.row.similarity.split("+") else {}
    return curve | {r["epoch"]: r["test"][run.row.similarity]["R1"] for r in folder.records() if "test" in r}
