"""What the pretrained weights achieve before training, for comparison with what training makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from processor.evaluation import Metrics, evaluate
from processor.types import DualEncoder, EvaluationData
from utils.files import write_text
from utils.log import logger
from utils.ranks import is_main

START_FILE = "start_metrics.json"


def evaluate_start(model: DualEncoder, splits: Mapping[str, EvaluationData], run_dir: Path) -> None:
    """Evaluate the starting weights on some splits, log R1, and write all metrics to `run_dir/start_metrics.json`.

    TSE's heads are untrained then, so that BGE alone tells what the pretrained CLIP can do.
    """
    metrics: dict[str, Metrics] = {}
    for name, data in splits.items():
        metrics[name] = evaluate(model, data)[0]
        logger.info("Before training: R1 %.2f on %s (BGE)", metrics[name]["BGE"]["R1"], data.name)
    if is_main():
        write_text(run_dir / START_FILE, json.dumps(metrics, indent=1) + "\n")


def read_start(run_dir: Path) -> dict[str, Metrics]:
    """The metrics of a run's starting weights by split; none where they are missing or damaged."""
    try:
        found = json.loads((run_dir / START_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
