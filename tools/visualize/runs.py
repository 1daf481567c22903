"""Runs as figures need them: flags, records, history, and what to call each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor.history import EpochHistory, read_history
from utils.errors import DataError, OptionError
from utils.flags import FREE
from utils.options import defaults, read_yaml
from utils.records import read_records
from utils.runs import CHECKPOINTS

# Flags in which runs may differ and still be the same experiment.
_INCIDENTAL = FREE | {"name"}
_LABEL = 40


@dataclass(frozen=True)
class Run:
    """A run's folder, flags, lines of metrics.jsonl, history, and test metrics (None before the test)."""

    folder: Path
    flags: dict[str, Any]
    records: list[dict[str, Any]]
    history: list[EpochHistory]
    test: dict[str, Any] | None

    def r1(self, row: str = "BGE+TSE") -> float | None:
        """Test R1 (%) of the best checkpoint."""
        return self.test[CHECKPOINTS[0]][row]["R1"] if self.test and CHECKPOINTS[0] in self.test else None


def read_run(folder: Path) -> Run:
    """Read what a run has left.

    Raises:
        OptionError: not a run's folder, or one without a whole epoch.
        DataError: a file of it is damaged.
    """
    flags = {**defaults(), **read_yaml(folder / "configs.yaml")}
    flags.pop("_run_", None)
    records = read_records(folder / "metrics.jsonl")
    if not records:
        raise OptionError(f"{folder} has no epoch in metrics.jsonl: is it a run of train.py?")
    file = folder / "test_metrics.json"
    try:
        test = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        raise DataError(f"{file} is damaged: delete it and evaluate again") from None
    return Run(folder, flags, records, read_history(folder), test)


def differing(runs: Sequence[Run]) -> list[str]:
    """The flags in which runs differ, but for incidental ones."""
    names = [name for name in (runs[0].flags if runs else ()) if name not in _INCIDENTAL]
    return [name for name in names if len({str(run.flags.get(name)) for run in runs}) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call each run: by the flags in which they differ, else, and where that is not enough, by its folder."""
    names = differing(runs)
    found = [", ".join(f"{name} {Path(str(run.flags.get(name))).name}" for name in names)[:_LABEL] for run in runs]
    if len(set(found)) < len(runs):
        half = [label[: _LABEL // 2] for label in found]
        found = [f"{label} {run.folder.resolve().name}".strip() for label, run in zip(half, runs, strict=True)]
    return found
