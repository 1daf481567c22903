"""The audit's figures: precision and recall of "noisy", and the most suspicious pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from datasets.images import read_image
from processor.figures import styles
from tools.audit.findings import Findings
from tools.audit.pairs import Pairs
from utils.figures import CLEAN, NOISY, save, wrap

_CELL, _COLUMNS = (160, 64), 4


def precision_recall(findings: Findings, judgement: Mapping[str, Any], file: Path) -> None:
    """Draw a curve per score, with its average precision, and the last epoch's votes as points."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    curves = findings.curves()
    for name, (colour, line) in styles(curves).items():
        recall, precision = curves[name]
        label = f"{name}, AP {judgement['average_precision'][name]:.3f}"
        axes.plot(recall, precision, line, color=colour, label=label)
    for (name, vote), marker in zip(judgement["last_epoch"].items(), cycle("o^sDvP"), strict=False):
        label = f"last epoch: {name}"
        axes.plot(vote["recall"], vote["precision"], marker, color="white", markeredgecolor="black", label=label)
    axes.axhline(judgement["chance"], color="#777777", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xlabel="recall of noisy pairs", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    save(figure, file)


def most_suspicious(findings: Findings, pairs: Pairs, suspects: Sequence[int], file: Path) -> None:
    """Draw pairs with captions and each vote's P(clean), framed by ground truth if known (paper, figures 7 to 9)."""
    rows = -(-len(suspects) // _COLUMNS)
    figure, grid = plt.subplots(rows, _COLUMNS, figsize=(1.75 * _COLUMNS, 4.1 * rows), squeeze=False)
    figure.subplots_adjust(left=0.05, right=0.95, top=1 - 0.1 / rows, bottom=0.27 / rows, wspace=0.9, hspace=0.58)
    for axes in grid.flat[len(suspects) :]:
        axes.axis("off")
    for axes, pair in zip(grid.flat, suspects, strict=False):
        axes.imshow(read_image(pairs.file(pair), _CELL).transpose(1, 2, 0), aspect="auto")
        axes.set(xticks=[], yticks=[])
        probabilities = ", ".join(f"{value:.2f}" for value in findings.last.clean_probability[:, pair])
        title, frame, width = f"P(clean) {probabilities}", "#999999", 2
        if findings.truth is not None:
            truth, frame, width = ("noisy", NOISY, 3) if findings.truth[pair] else ("clean", CLEAN, 3)
            title = f"truth: {truth}\n{title}"
        axes.set_title(title, fontsize=8, pad=3)
        axes.set_xlabel(wrap(pairs.caption(pair), 25, 7), fontsize=7.5, loc="center")
        for side in axes.spines.values():
            side.set(color=frame, linewidth=width)
    save(figure, file)
