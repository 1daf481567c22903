"""The test: evaluating a run's checkpoints, with one table per checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from processor import figures
from processor.evaluation import Encoded, Ranking, evaluate, table
from processor.metrics import queries_at_a_time
from processor.saving import Saving, save_results
from processor.settings import RerankSettings
from processor.types import Encoder, EvaluationData
from utils.checkpoints import epoch_of
from utils.figures import evenly_spaced
from utils.files import write_text
from utils.log import logger
from utils.ranks import is_main
from utils.run_folder import RunFolder

_DRAWN = 8  # number of captions drawn with their best images, evenly spaced over the split


@dataclass(frozen=True)
class Report:
    """Title, kind and output files of a test.

    Attributes:
        title: name of the data, for tables.
        suffix: file suffix, so that tests with other data or precision don't overwrite the run's results.
        image_to_text: rank captions for every image instead of images for every caption.
        saving: result files to write for the first checkpoint.
        rerank: also rank by the re-ranked fused similarity.
        trained: also rank by the mean of these embeddings' cosines.
    """

    title: str
    suffix: str = ""
    image_to_text: bool = False
    saving: Saving | None = None
    rerank: RerankSettings | None = None
    trained: Sequence[str] = ()


def evaluate_run(
    files: Sequence[Path], build: Callable[[Path], Encoder], data: EvaluationData, run: RunFolder, report: Report
) -> None:
    """Evaluate checkpoints, log a table for each, and write `test_metrics<suffix>.json`.

    For text-to-image ranking, the first checkpoint's best matches are drawn into `figures/retrieval<suffix>.png`. An
    existing file's entries for other checkpoints are kept.

    Args:
        build: loads a checkpoint's model onto its device.
    """
    results: dict[str, dict[str, Any]] = {}
    for number, file in enumerate(files):
        options = {"image_to_text": report.image_to_text, "rerank": report.rerank, "trained": report.trained}
        metrics, encoded = evaluate(build(file), data, **options)
        epoch = epoch_of(file)
        results[file.name] = metrics | ({} if epoch is None else {"epoch": epoch})
        title = report.title + ("" if epoch is None else f" (epoch {epoch})")
        logger.info("%s", table(metrics, f"{file.name} on {title}"))
        if number == 0 and is_main() and report.saving is not None:
            save_results(report.saving, Ranking(encoded, **options), data)
        if number == 0 and not report.image_to_text and is_main():
            sheet = run.path / "figures" / f"retrieval{report.suffix}.png"
            draw_retrieval(encoded, data, f"{run.path.name}/{file.name} on {title}", sheet)
    if is_main():  # last, because it marks the run as finished
        content = run.tested(report.suffix) | results
        write_text(run.path / f"test_metrics{report.suffix}.json", json.dumps(content, indent=1) + "\n")


def failed_queries(encoded: Encoded, data: EvaluationData) -> np.ndarray:
    """Indices of captions whose top image by the fused similarity shows another person."""
    top, chunk = [], queries_at_a_time(len(data.image_pids))
    for start in range(0, len(data.caption_pids), chunk):
        top.append(encoded.similarity(slice(start, start + chunk))[encoded.fused].argmax(dim=1).cpu().numpy())
    return np.flatnonzero(data.image_pids[np.concatenate(top)] != data.caption_pids)


def draw_retrieval(
    encoded: Encoded, data: EvaluationData, title: str, file: Path, captions: np.ndarray | None = None
) -> None:
    """Draw the best images for some captions, by default evenly spaced ones; `title` names checkpoint and data."""
    if captions is None:
        captions = evenly_spaced(len(data.caption_pids), _DRAWN)
    similarity = encoded.similarity(captions.tolist())[encoded.fused].cpu().numpy()
    ranked = [
        figures.Ranked(data.split.captions[caption], scores, data.image_pids == data.caption_pids[caption])
        for caption, scores in zip(captions, similarity, strict=True)
    ]
    figures.retrieval_sheet(ranked, data.split.images, f"{title}, by {encoded.fused}", file)
