"""Runs as figures need them: flags, records, history, and what to call each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from processor.history import EpochHistory, read_history
from utils.errors import DataError, OptionError, UserError
from utils.flags import FREE
from utils.options import defaults, read_yaml
from utils.records import read_records
from utils.runs import CHECKPOINTS

# Flags in which runs may differ and still be the same experiment.
_INCIDENTAL = FREE | {"name", "record_test"}
_VALUE, _LINE = 24, 40  # letters of a flag's value, and of a line that tells several
_DRAWN = ("lr", "loss", "bge_loss", "tse_loss")  # of every line of metrics.jsonl


class NothingToDraw(UserError):
    """Runs lack what a figure shows; the message says what."""


@dataclass(frozen=True)
class Run:
    """A run: folder, flags, lines of metrics.jsonl, and test R1 (%) of its best checkpoint by row, if tested."""

    folder: Path
    flags: dict[str, Any]
    records: list[dict[str, Any]]
    r1: dict[str, float]

    @property
    def validated(self) -> list[dict[str, Any]]:
        """The records of epochs with a validation."""
        return [record for record in self.records if "val" in record]

    @cached_property
    def history(self) -> list[EpochHistory]:
        """What the run has kept of its epochs.

        Raises:
            DataError: a file of it is damaged.
        """
        return read_history(self.folder)


def read_run(folder: Path) -> Run:
    """Read what a run has left.

    Raises:
        OptionError: not a run's folder, or one without a whole epoch.
        DataError: a file of it is damaged.
    """
    flags = {**defaults(), **read_yaml(folder / "configs.yaml")}
    flags.pop("_run_", None)
    flags["loss_names"] = str(flags["loss_names"]).partition("+")[0]  # a label repeats other flags
    file = folder / "metrics.jsonl"
    records = read_records(file)
    if not records:
        raise OptionError(f"{folder} has no epoch in metrics.jsonl: is it a run of train.py?")
    for record in records:
        if missing := [name for name in _DRAWN if not isinstance(record.get(name), int | float)]:
            raise DataError(f"{file}, epoch {record['epoch']}: no number {missing[0]}, it is damaged or of other code")
    return Run(folder, flags, records, _test_r1(folder / "test_metrics.json"))


def _test_r1(file: Path) -> dict[str, float]:
    try:
        best = json.loads(file.read_text(encoding="utf-8")).get(CHECKPOINTS[0], {})
        return {row: float(metrics["R1"]) for row, metrics in best.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{file} is damaged: delete it and evaluate again") from None


def differing(runs: Sequence[Run]) -> list[str]:
    """The flags in which runs differ, but for incidental ones; the seed comes last."""
    names = [name for name in (runs[0].flags if runs else ()) if name not in _INCIDENTAL]
    found = [name for name in names if len({str(run.flags.get(name)) for run in runs}) > 1]
    return sorted(found, key=lambda name: name == "seed")


def label(run: Run, names: Sequence[str]) -> str:
    """A run in the words of some of its flags, in lines of some length."""
    values = (Path(str(run.flags.get(name))).name or "none" for name in names)
    words = [f"{name} {value:.{_VALUE}}" for name, value in zip(names, values, strict=True)]
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        lines[-1:] = [joined] if len(joined) <= _LINE else [f"{lines[-1]},", word]
    return "\n".join(lines)


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call each run: by the flags in which they differ, else, and where that is not enough, by its folder."""
    names = differing(runs)
    found = [label(run, names) for run in runs]
    if len(set(found)) < len(runs):
        found = [f"{text}\n{end}".strip() for text, end in zip(found, _ends([run.folder for run in runs]), strict=True)]
    return found


def _ends(folders: Sequence[Path]) -> list[str]:
    """As much of each path's end as tells them apart; matplotlib leaves out of a legend what begins with "_"."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(of[-length:]) for of in parts]
        if len(set(ends)) == len(set(parts)) and not any(end.startswith("_") for end in ends):
            break
    return ends
