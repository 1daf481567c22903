"""The test: every checkpoint of a run on the test split, one table each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from processor.evaluation import Metrics, evaluate, table
from processor.types import DualEncoder, EvaluationData
from utils import figures
from utils.log import logger


def evaluate_checkpoints(
    files: Sequence[Path],
    build: Callable[[Path], DualEncoder],
    data: EvaluationData,
    title: str,
    figure: Path,
    *,
    image_to_text: bool = False,
) -> dict[str, Metrics]:
    """Evaluate checkpoints in turn and log their tables.

    Args:
        build: gives a checkpoint's model, on its device.
        data: the split, with its `split` of captions and image paths.

    Returns:
        Metrics in percent by the checkpoint's file name. The first checkpoint's best matches are drawn into `figure`.
    """
    results = {}
    for number, file in enumerate(files):
        results[file.name], fused = evaluate(build(file), data, image_to_text=image_to_text)
        logger.info("%s", table(results[file.name], f"{file.name} on {title}"))
        if number == 0:
            figures.retrieval_sheet(
                fused.cpu().numpy(),
                data.caption_pids,
                data.image_pids,
                data.split.captions,
                data.split.images,
                figure,
            )
    return results


def write_test_metrics(results: dict[str, Metrics], file: Path) -> None:
    """Write `test_metrics.json` in one step; what an older one says of other checkpoints is kept."""
    if file.is_file():
        results = json.loads(file.read_text(encoding="utf-8")) | results
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)
