"""Curves over epochs and over a flag's values."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from processor.figures import mark_epoch, r1_per_epoch, styles
from tools.differing import differing_flags, display_values, distinct_suffixes
from tools.visualize.runs import NothingToDraw, Run, label, labels
from utils.figures import BLACK, CLEAN, NOISY, legend_below, over_epochs, save

# Okabe and Ito's colours, each with its own line style and marker.
LINES = [
    ("#000000", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#D55E00", "-.", "^"),
    ("#009E73", ":", "D"),
    ("#CC79A7", "-", "v"),
    ("#56B4E9", "--", "P"),
    ("#E69F00", "-.", "X"),
]
_METRICS = {"R1": "-", "R5": "--", "R10": ":", "mAP": "-."}
_COLUMNS = 3
_LETTER = 0.065  # width of a legend's letter in inches
SWEPT = {"margin": "m", "tau": "τ", "select_ratio": "R"}  # the paper's figures 4 and 6


def line_style(number: int) -> dict[str, Any]:
    """The style of a figure's line `number`, from 0; beyond `LINES`, with other dashes and hollow markers."""
    colour, _, marker = LINES[number % len(LINES)]
    _, line, _ = LINES[(number + number // len(LINES)) % len(LINES)]
    hollow = {"markerfacecolor": "white"} if number // len(LINES) % 2 else {}
    return {"color": colour, "linestyle": line, "marker": marker, **hollow}


def training_curves(run: Run, file: Path) -> None:
    """Draw losses, learning rate, CCD's counts, its precision and recall if the truth is known, and validation."""
    epochs = [record["epoch"] for record in run.records]
    layout: Any = [["loss", "rate"], ["counts", "truth"], ["val", "val"]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(8, 7.6), layout="constrained")
    losses = run.losses()
    for name, (colour, line) in styles(losses).items():
        axes["loss"].plot(epochs, losses[name], line, color=colour, marker=".", label=name)
    over_epochs(axes["loss"], "training loss of a batch")
    axes["loss"].set_ylim(bottom=0)
    axes["loss"].legend()
    axes["rate"].plot(epochs, [record["lr"] for record in run.records], color=BLACK, marker=".")
    over_epochs(axes["rate"], "learning rate")
    axes["rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes["rate"].set_ylim(bottom=0)
    _draw_division(run, axes["counts"], axes["truth"])
    validated = run.validated
    if not validated:
        _draw_reason(axes["val"], "no epoch was validated")
    for (name, line), (colour, _, marker) in zip(_METRICS.items(), LINES, strict=False):
        values = [record["val"][run.fused][name] for record in validated]
        validated_epochs = [record["epoch"] for record in validated]
        axes["val"].plot(validated_epochs, values, line, color=colour, marker=marker, markersize=3, label=name)
    if validated:
        mark_epoch(axes["val"], run.best_epoch)
        over_epochs(axes["val"], f"{run.split_title}, {run.fused} (%)")
        axes["val"].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False)
    save(figure, file)


def _draw_division(run: Run, counts: Axes, truth: Axes) -> None:
    divided = [record for record in run.records if record.get("ccd")]
    known = bool(run.flags["noisy_rate"]) and all(record["ccd"]["precision"] is not None for record in divided)
    epochs = [record["epoch"] for record in divided]
    if divided:
        for name, colour, line in (("clean", CLEAN, "-"), ("noisy", NOISY, "--"), ("uncertain", "#777777", ":")):
            counts.plot(epochs, [record["ccd"][name] for record in divided], line, color=colour, marker=".", label=name)
        over_epochs(counts, "training pairs")
        counts.set_ylim(bottom=0)
        counts.legend()
    else:
        _draw_reason(counts, "no pairs were classified")
    if divided and known:
        for name, line in (("precision", "-"), ("recall", "--")):
            values = [100 * record["ccd"][name] for record in divided]
            truth.plot(epochs, values, line, color=CLEAN, marker=".", label=name)
        over_epochs(truth, "clean set (%)")
        truth.set_ylim(0, 102)
        truth.legend()
    else:
        _draw_reason(truth, "the true noise is unknown" if divided else "")


def _draw_reason(axes: Axes, reason: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, reason, ha="center", va="center")


def r1_of_run(run: Run, file: Path) -> None:
    """Draw validation R1 per epoch, one line per embedding.

    Raises:
        NothingToDraw: no epoch was validated.
    """
    if not run.validated:
        raise NothingToDraw("no epoch was validated")
    r1_per_epoch(run.validated, run.best_epoch, run.split, file)


def r1_of_runs(runs: Sequence[Run], file: Path) -> None:
    """Draw validation R1 of the fused similarity per epoch, one line per run, one panel per data set (paper, figure 5).

    Raises:
        NothingToDraw: no run was validated.
    """
    if not any(run.validated for run in runs):
        raise NothingToDraw("no epoch was validated")
    names, data = labels(runs), list(dict.fromkeys(run.data for run in runs))
    splits = dict.fromkeys(run.split_title for run in runs)
    lines = [line for name in names for line in name.split("\n")]
    size = (4 * len(data) + 1.5 + _LETTER * max(map(len, lines)), max(3.8, 0.2 * len(lines)))
    figure, grid = plt.subplots(1, len(data), figsize=size, layout="constrained", squeeze=False, sharey=True)
    panels = dict(zip(data, grid[0], strict=True))
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        r1 = [record["val"][run.fused]["R1"] for record in run.validated]
        every = max(1, len(r1) // 12)
        epochs = [record["epoch"] for record in run.validated]
        panels[run.data].plot(epochs, r1, label=name, markersize=4, markevery=every, **line_style(number))
    for axes, title in zip(grid[0], distinct_suffixes(data), strict=True):
        over_epochs(axes, f"R1 on {' or '.join(splits)} (%)" if axes is grid[0, 0] else "")
        axes.set_title(title, fontsize=9)
    figure.legend(loc="outside right center", fontsize=8)
    save(figure, file)


def sweep(runs: Sequence[Run], name: str, file: Path) -> None:
    """Draw test R1 over m, τ or R (paper, figures 4 and 6), one panel per group of runs that agree in all other flags.

    Seeds are averaged, with their standard deviation as error bars.

    Args:
        name: the flag, one of `SWEPT`.

    Raises:
        NothingToDraw: no group has several values of the flag.
    """
    tested = [run for run in runs if run.r1]
    others = [other for other in differing_flags([run.flags for run in tested]) if other not in (name, "seed")]
    groups = defaultdict(list)
    for run in tested:
        groups[str([run.flags.get(other) for other in others])].append(run)
    swept = [group for group in groups.values() if len({run.flags[name] for run in group}) > 1]
    if not swept:
        raise NothingToDraw(f"no tested runs differ in {SWEPT[name]} (--{name}) alone")
    columns, rows = min(_COLUMNS, len(swept)), -(-len(swept) // _COLUMNS)
    size = (3.4 * columns + 1, 3 * rows + 0.4)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    values = sorted({run.flags[name] for group in swept for run in group})
    first = [group[0].flags for group in swept]
    distinguishing = [other for other in differing_flags(first) if other in others]
    for axes, group, flags in zip(grid.flat, swept, display_values(first, distinguishing), strict=False):
        _draw_sweep(axes, group, name)
        axes.set_title(label(flags), fontsize=9)
        axes.set(xlabel=f"{SWEPT[name]} (--{name})", xticks=values)
        axes.tick_params(axis="x", labelrotation=45 if len(values) > 4 else 0, labelbottom=True)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(swept) :]:
        axes.axis("off")
    figure.supylabel("R1 on test, best checkpoint (%)", fontsize="medium")
    legend_below(figure, grid[0, :1])
    save(figure, file)


def _draw_sweep(axes: Axes, runs: Sequence[Run], name: str) -> None:
    values = sorted({run.flags[name] for run in runs})
    names = [name for name in runs[0].r1 if all(name in run.r1 for run in runs)]
    for row, (colour, line) in styles(names).items():
        r1 = [[run.r1[row] for run in runs if run.flags[name] == value] for value in values]
        spread = [statistics.stdev(seeds) if len(seeds) > 1 else 0 for seeds in r1]
        mean = [statistics.mean(seeds) for seeds in r1]
        axes.errorbar(values, mean, spread, fmt=line, color=colour, marker="o", markersize=4, capsize=3, label=row)
