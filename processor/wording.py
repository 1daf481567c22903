"""Log lines of an epoch; one is for `grep epoch= train_log.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from processor.records import selecting_similarity

_BUSY = 0.3  # share of time waiting for a core that clearly slows a run down


def epoch_line(
    record: Mapping[str, Any], epochs: int, trained: tuple[str, ...], seconds_left: float, split: str
) -> str:
    """An epoch's results and the run's ETA in one line.

    Args:
        record: as in metrics.jsonl; "val" is missing in an epoch without validation.
        epochs: number of epochs of the run.
        trained: embeddings whose similarity selects the best epoch.
        split: name of the split behind "val".
    """
    words = [f"epoch={record['epoch']}/{epochs}"]
    if metrics := record.get("val"):
        row = metrics[selecting_similarity(trained, metrics)]
        words += [f"split={split}", f"R1={row['R1']:.2f}", f"mAP={row['mAP']:.2f}"]
    words += [f"loss={record['loss']:.3f}", f"pairs/s={record['pairs_per_second']:.0f}"]
    return " ".join([*words, f"ETA={timedelta(seconds=round(seconds_left))}"])


def busy_host(waited: float) -> str:
    """A warning if the share, in [0, 1], of time that threads waited for a core is large; else ""."""
    if waited < _BUSY:
        return ""
    cause = "other programs or more threads than cores slow this run down"
    return f"threads waited for a core {waited:.0%} of the time: {cause} (OMP_NUM_THREADS sets how many compute)"
