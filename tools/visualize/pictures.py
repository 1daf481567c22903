"""Pictures from a run's model: retrieval sheets, and token selection on images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg

from assembly import inputs
from datasets.annotations import Split, read_splits
from datasets.gallery import Gallery, open_gallery
from datasets.settings import DataSettings
from processor.evaluate_run import draw_retrieval, failed_queries
from processor.evaluation import Encoded, encode
from tools.loading import LoadedRun
from tools.selection import chosen_words, overlaid
from tools.visualize.runs import NothingToDraw
from utils.checkpoints import epoch_of
from utils.figures import TITLE_LINE, evenly_spaced, save

_PAIRS = 6
_INK = (0.0, 0.447, 0.698)  # background of selected words; opacity grows with attention

_LEGEND = (
    "Right of each image: the same image with the patches that TSE ignores faded. TSE uses the blue words of the "
    "caption\n(the darker, the more attention) and ignores the grey ones."
)


def retrieval_sheet(run: LoadedRun, wrong: int, file: Path) -> None:
    """Draw the top images for captions of the test split, framed as right or wrong.

    Args:
        wrong: draw only up to this many captions whose first image shows another person; 0 for any captions.

    Raises:
        DataError: the data are missing or damaged.
        NothingToDraw: every caption has a correct first image.
    """
    encoded, gallery = encoded_test(run)
    if not wrong:
        draw_retrieval(encoded, gallery, source(run), file)
        return
    failed = failed_queries(encoded, gallery)
    if not len(failed):
        raise NothingToDraw("every query has a correct rank-1 image")
    drawn = failed[evenly_spaced(len(failed), wrong)]
    count = f"{len(drawn):,} of {len(failed):,} of {len(gallery.caption_pids):,} queries with a wrong rank-1 image"
    draw_retrieval(encoded, gallery, f"{count}\n{source(run)}", file, drawn)


def encoded_test(run: LoadedRun) -> tuple[Encoded, Gallery]:
    """The test split and its embeddings by a run's model.

    Raises:
        DataError: the data are missing or damaged.
    """
    device = next(run.model.parameters()).device
    model_inputs = inputs(run.options, run.model)
    gallery = open_gallery(run.options.of(DataSettings), model_inputs, "test", _test_split(run), device)
    return encode(run.model, gallery), gallery


def selection_sheet(run: LoadedRun, file: Path) -> None:
    """Draw test images with their selected patches, and their captions with the selected words highlighted.

    Raises:
        DataError: the data are missing or damaged.
    """
    split = _test_split(run)
    captions = np.unique(np.linspace(0, len(split.captions) - 1, min(_PAIRS, len(split.captions))).astype(int))
    rows = -(-len(captions) // 2)
    head = TITLE_LINE * (_LEGEND.count("\n") + 2) + 0.1
    size = (10, 2.3 * rows + head)
    figure, grid = plt.subplots(rows, 6, figsize=size, squeeze=False, width_ratios=[1, 1, 2.6] * 2)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - head / size[1], wspace=0.06, hspace=0.06)
    figure.text(0.01, 1 - 0.04 / size[1], f"Token selection by {source(run)}\n{_LEGEND}", va="top", fontsize=8)
    tokenizer = inputs(run.options, run.model).tokenizer
    for axes in grid.flat:
        axes.axis("off")
    for axes, caption in zip(grid.reshape(-1, 3), captions, strict=False):
        pictures = overlaid(run.model, run.options.img_size, split.images[split.caption_images[caption]])
        for place, picture in zip(axes, pictures, strict=False):
            place.imshow(picture, aspect="auto")
        _draw_words(axes[2], chosen_words(run.model, tokenizer, split.captions[caption]))
    save(figure, file)


def source(run: LoadedRun) -> str:
    """Checkpoint and data of a picture, for its title."""
    epoch = epoch_of(run.file)
    suffix = "" if epoch is None else f" (epoch {epoch})"
    return f"{run.folder.name}/{run.file.name} on {run.options.dataset_name}, test{suffix}"


def _test_split(run: LoadedRun) -> Split:
    options = run.options
    return read_splits(options.dataset_name, Path(options.root_dir), ["test"], options.split_all)["test"]


def _draw_words(axes: Axes, words: Sequence[tuple[str, float]]) -> None:
    """Draw words line by line; selected ones have a background whose opacity is their attention."""
    figure = axes.figure
    canvas: Any = figure.canvas
    renderer: RendererAgg = canvas.get_renderer()
    box = axes.get_window_extent(renderer)
    x, y, line = 0.03, 0.92, 14 * figure.dpi / 72 / box.height
    for word, weight in words:
        ground = {"facecolor": (*_INK, 0.1 + 0.5 * weight), "edgecolor": _INK, "linewidth": 0.4, "pad": 1.2}
        text = axes.text(
            x,
            y,
            word.replace("$", r"\$"),
            fontsize=8,
            va="top",
            transform=axes.transAxes,
            color="black" if weight else "#888888",
            bbox=ground if weight else None,
        )
        width = text.get_window_extent(renderer).width / box.width
        if x + width > 0.98 and x > 0.03:
            x, y = 0.03, y - line
            text.set_position((x, y))
        x += width + 6 * figure.dpi / 72 / box.width
        if y < 0.05:
            text.set_text("…")
            break
