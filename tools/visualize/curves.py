"""Lines over epochs, and over a flag's values."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from processor.evaluation import SIMILARITIES
from tools.visualize.runs import Run, differing, labels
from utils.figures import BOTH, CLEAN, NOISY, STYLES, over_epochs, save

# Okabe and Ito's colours, each with a line and a marker of its own.
_LINES = [
    ("#000000", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#D55E00", "-.", "^"),
    ("#009E73", ":", "D"),
    ("#CC79A7", "-", "v"),
    ("#56B4E9", "--", "P"),
    ("#E69F00", "-.", "X"),
]
SWEPT = {"margin": "m", "tau": "τ", "select_ratio": "R"}  # the paper's figures 4 and 6


def training_curves(run: Run, file: Path) -> None:
    """Losses, learning rate, CCD's counts and its precision and recall, and validation, over the epochs."""
    epochs = [record["epoch"] for record in run.records]
    figure, ((loss, rate), (counts, metrics)) = plt.subplots(2, 2, figsize=(8, 5.4), layout="constrained")
    for name, key in (("BGE", "bge_loss"), ("TSE", "tse_loss"), ("BGE+TSE", "loss")):
        colour, line = STYLES[name]
        loss.plot(epochs, [record[key] for record in run.records], line, color=colour, marker=".", label=name)
    over_epochs(loss, "training loss of a batch")
    loss.legend()
    rate.plot(epochs, [record["lr"] for record in run.records], color=BOTH, marker=".")
    over_epochs(rate, "learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _division(run, counts)
    validated = [record for record in run.records if "val" in record]
    for name, line in (("R1", "-"), ("R5", "--"), ("R10", ":"), ("mAP", "-.")):
        values = [record["val"]["BGE+TSE"][name] for record in validated]
        metrics.plot([record["epoch"] for record in validated], values, line, color=BOTH, marker=".", label=name)
    over_epochs(metrics, "validation, BGE+TSE (%)")
    metrics.legend(ncols=2)
    save(figure, file)


def _division(run: Run, axes: plt.Axes) -> None:
    divided = [record for record in run.records if record.get("ccd")]
    if not divided:
        axes.axis("off")
        axes.text(0.5, 0.5, "no pairs were divided", ha="center", va="center")
        return
    epochs = [record["epoch"] for record in divided]
    for name, colour, line in (("clean", CLEAN, "-"), ("noisy", NOISY, "--"), ("uncertain", "#777777", ":")):
        axes.plot(epochs, [record["ccd"][name] for record in divided], line, color=colour, marker=".", label=name)
    over_epochs(axes, "pairs by CCD")
    axes.set_ylim(bottom=0)
    axes.legend()


def r1_of_runs(runs: Sequence[Run], file: Path) -> bool:
    """Validation R1 of BGE+TSE per epoch, a line a run (paper, figure 5); False where no run was validated."""
    if not any("val" in record for run in runs for record in run.records):
        return False
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        validated = [record for record in run.records if "val" in record]
        colour, line, marker = _LINES[number % len(_LINES)]
        r1 = [record["val"]["BGE+TSE"]["R1"] for record in validated]
        every = max(1, len(r1) // 12)
        epochs = [record["epoch"] for record in validated]
        again = {"markerfacecolor": "white"} if number // len(_LINES) % 2 else {}
        axes.plot(epochs, r1, line, color=colour, marker=marker, markersize=4, markevery=every, label=label, **again)
    over_epochs(axes, "R1 on validation (%)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)) if len(runs) > 5 else axes.legend(fontsize=8)
    save(figure, file)
    return True


def sweeps(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Test R1 over the values of m, τ or R, for each that takes several values while all other flags agree.

    Runs that differ in their seed are averaged, and their spread drawn.
    """
    drawn = []
    tested = [run for run in runs if run.r1() is not None]
    for name, symbol in SWEPT.items():
        groups = defaultdict(list)
        others = [other for other in differing(tested) if other not in (name, "seed")]
        for run in tested:
            groups[str([run.flags.get(other) for other in others])].append(run)
        group = max(groups.values(), key=lambda group: len({run.flags[name] for run in group}), default=[])
        values = sorted({run.flags[name] for run in group})
        if len(values) > 1:
            drawn.append(folder / f"sweep_{name}")
            _sweep(group, name, symbol, values, drawn[-1])
    return drawn


def _sweep(runs: Sequence[Run], name: str, symbol: str, values: Sequence[float], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(4.4, 3.4), layout="constrained")
    for row in SIMILARITIES:
        r1 = [[run.r1(row) for run in runs if run.flags[name] == value] for value in values]
        spread = [statistics.stdev(found) if len(found) > 1 else 0 for found in r1]
        colour, line = STYLES[row]
        mean = [statistics.mean(found) for found in r1]
        axes.errorbar(values, mean, spread, fmt=line, color=colour, marker="o", markersize=4, capsize=3, label=row)
    axes.set(xlabel=f"{symbol} (--{name})", ylabel="R1 on test, best checkpoint (%)", xticks=values)
    axes.tick_params(axis="x", labelrotation=45 if len(values) > 5 else 0)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, file)
