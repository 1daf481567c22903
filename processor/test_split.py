"""The test: every checkpoint of a run on the test split, one table each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from processor.evaluation import SIMILARITIES, Encoded, Metrics, evaluate, table
from processor.types import DualEncoder, EvaluationData
from utils import figures
from utils.errors import DataError
from utils.files import write_text
from utils.log import logger
from utils.ranks import is_main

_DRAWN = 8  # captions whose best images are drawn, spread evenly over the split


def evaluate_run(
    files: Sequence[Path],
    build: Callable[[Path], DualEncoder],
    data: EvaluationData,
    title: str,
    run_dir: Path,
    *,
    suffix: str = "",
    image_to_text: bool = False,
) -> None:
    """Evaluate checkpoints, log a table each, write `test_metrics<suffix>.json`.

    Text to image, the best matches of the first checkpoint are drawn into `figures/retrieval<suffix>.png`.

    Args:
        build: gives a checkpoint's model, on its device.
        data: the split, with its `split` of captions and image paths.
    """
    results = {}
    for number, file in enumerate(files):
        results[file.name], encoded = evaluate(build(file), data, image_to_text=image_to_text)
        logger.info("%s", table(results[file.name], f"{file.name} on {title}"))
        if number == 0 and not image_to_text and is_main():
            draw_retrieval(encoded, data, run_dir / "figures" / f"retrieval{suffix}.png")
    if is_main():
        _write_metrics(results, run_dir / f"test_metrics{suffix}.json")  # last: with it a run is finished


def draw_retrieval(encoded: Encoded, data: EvaluationData, file: Path) -> None:
    """Draw the best images of a few captions of a split."""
    captions = np.unique(np.linspace(0, len(data.caption_pids) - 1, _DRAWN).astype(int))
    figures.retrieval_sheet(
        encoded.similarity(captions)[SIMILARITIES[2]].cpu().numpy(),
        data.caption_pids[captions],
        data.image_pids,
        [data.split.captions[caption] for caption in captions],
        data.split.images,
        file,
    )


def _write_metrics(results: dict[str, Metrics], file: Path) -> None:
    """Write in one step; what an older file says of other checkpoints is kept."""
    if file.is_file():
        try:
            results = json.loads(file.read_text(encoding="utf-8")) | results
        except (ValueError, TypeError):
            raise DataError(f"{file} is damaged: delete it and evaluate again") from None
    write_text(file, json.dumps(results, indent=1) + "\n")
