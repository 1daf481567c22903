"""R1 per epoch of a table's rows, one line each; epoch 0 is before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tools.reproduce.runs import Run
from tools.visualize.curves import LINES, line_style
from utils.figures import legend_below, over_epochs, save


def draw_curves(rows: Sequence[Sequence[Run]], file: Path) -> bool:
    """Draw each row's mean over seeds, with the range from minimum to maximum shaded.

    Epoch 0 is the pretrained CLIP, by its own embedding. Rows with the same run and similarity are drawn once. If there
    are more rows than line styles, each noise rate gets a panel with one line per method.

    Returns:
        Whether there was a row to draw.
    """
    drawn = {}
    for runs in rows:
        row = runs[0].row
        curves = [curve for run in runs if (curve := _curve(run))]
        if curves and not row.start and not row.target:
            drawn.setdefault((row.slug, row.similarity), (row.title, f"{row.noise:.0%} noise", curves))
    if not drawn:
        return False
    if len(drawn) <= len(LINES):
        figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
        for number, (title, noise, curves) in enumerate(drawn.values()):
            _draw(axes, f"{title}, {noise}", curves, number)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        panels = {"": axes}
    else:
        noises = list(dict.fromkeys(noise for _, noise, _ in drawn.values()))
        titles = list(dict.fromkeys(title for title, _, _ in drawn.values()))
        size = (2.6 * len(noises) + 0.5, 3.8)
        figure, grid = plt.subplots(1, len(noises), figsize=size, layout="constrained", squeeze=False, sharey=True)
        panels = dict(zip(noises, grid[0], strict=True))
        for title, noise, curves in drawn.values():
            _draw(panels[noise], title, curves, titles.index(title))
        legend_below(figure, grid[0])
    for number, (heading, axes) in enumerate(panels.items()):
        over_epochs(axes, "" if number else "R1 on test (%)")
        axes.set(title=heading, ylim=(0, None))
    save(figure, file)
    return True


def _draw(axes: Axes, title: str, curves: Sequence[dict[int, float]], number: int) -> None:
    """Draw one row in the figure's line style `number`."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    r1 = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # (seeds, epochs)
    style = line_style(number)
    axes.plot(epochs, r1.mean(axis=0), markersize=3, markevery=max(1, len(epochs) // 12), label=title, **style)
    axes.fill_between(epochs, r1.min(axis=0), r1.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)


def _curve(run: Run) -> dict[int, float]:
    """R1 (%) on the test split by epoch; empty for an unfinished run."""
    folder = run.finished()
    if folder is None:
        return {}
    start = folder.start_metrics().get("test", {})
    first = next(iter(start), "")  # the other heads are untrained
    curve = {0: start[first]["R1"]} if first in run.row.similarity.split("+") else {}
    return curve | {r["epoch"]: r["test"][run.row.similarity]["R1"] for r in folder.records() if "test" in r}
