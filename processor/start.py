"""Metrics of the pretrained weights before training, as a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from processor.evaluation import Metrics, evaluate
from processor.types import Encoder, EvaluationData
from utils.files import write_text
from utils.log import logger
from utils.ranks import is_main


def evaluate_start(model: Encoder, splits: Mapping[str, EvaluationData], run_dir: Path) -> None:
    """Evaluate the starting weights on some splits, log R1, and write all metrics to `run_dir/start_metrics.json`.

    Heads other than BGE are untrained at this point, so only BGE reflects the pretrained CLIP.
    """
    metrics: dict[str, Metrics] = {}
    for name, data in splits.items():
        metrics[name] = evaluate(model, data)[0]
        first = next(iter(metrics[name]))
        logger.info("Before training: R1 %.2f on %s (%s)", metrics[name][first]["R1"], data.name, first)
    if is_main():
        write_text(run_dir / "start_metrics.json", json.dumps(metrics, indent=1) + "\n")
