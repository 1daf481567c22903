"""Runs as figures need them: flags, records, history, and what to call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from processor.history import EpochHistory, read_history
from processor.records import best_record
from tools.differing import differing, ends, flags_of, shown
from utils.errors import DataError, OptionError, UserError
from utils.run_folder import CHECKPOINTS, RunFolder
from utils.settings import FLAGS

_VALUE, _LINE = 24, 40  # letters of a flag's value, and of a line of several
_PART = "_loss"  # ends the names of the loss's parts in a record: "bge_loss"


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
    def data(self) -> str:
        """The data set that it was trained and validated on, or its annotation file."""
        return str(self.flags["dataset_name"])

    @property
    def validated(self) -> list[dict[str, Any]]:
        """The records of epochs with a validation."""
        return [record for record in self.records if "val" in record]

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest R1 on validation; 0 without a validation."""
        record = best_record(self.records, str(self.flags["trained"]))
        return record["epoch"] if record else 0

    @property
    def fused(self) -> str:
        """The similarity of all embeddings together, which records list last; "" without a validation."""
        return list(self.validated[0]["val"])[-1] if self.validated else ""

    def losses(self) -> dict[str, list[float]]:
        """The parts of the training loss by epoch, under the names of their embeddings, and their sum."""
        known = {name.lower(): name for record in self.validated[:1] for name in record["val"]}
        keys = {known.get(key.removesuffix(_PART), key.removesuffix(_PART)): key for key in _parts(self.records)}
        if len(keys) != 1:
            keys["+".join(keys) or "all"] = "loss"
        return {name: [record[key] for record in self.records] for name, key in keys.items()}

    @cached_property
    def history(self) -> list[EpochHistory]:
        """What the run has kept of its epochs.

        Raises:
            DataError: a file of it is damaged.
        """
        return read_history(self.folder)


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        OptionError: not a run's folder, or one without a whole epoch; a flag's value is of the wrong type.
        DataError: a file of it is damaged.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise OptionError(f"{folder} is not a run folder: it holds no {run.config.name}")
    for name, value in run.flags().items():
        if name in FLAGS:
            FLAGS[name].checked(value, f"configuration {run.config}: {name}")
    flags, records = flags_of(run), run.records()
    if not records:
        raise OptionError(f"{folder} has no epoch in metrics.jsonl: is it a run of train.py?")
    for record in records:
        drawn = ("lr", "loss", *_parts(records))
        missing = [name for name in drawn if not isinstance(record.get(name), int | float)]
        if "val" in record and not _are_metrics(record["val"]):
            missing.append("R1 in val")
        if missing:
            where = f"{folder / 'metrics.jsonl'}, epoch {record['epoch']}"
            raise DataError(f"{where}: no number {missing[0]}, it is damaged or from another version")
    tested = run.test_metrics().get(CHECKPOINTS[0], {})
    return Run(folder, flags, records, {row: metrics["R1"] for row, metrics in tested.items() if "R1" in metrics})


def _are_metrics(rows: object) -> bool:
    """Whether every row of a validation says at least R1."""
    said = rows.values() if isinstance(rows, dict) else [None]
    return bool(said) and all(isinstance(of, dict) and isinstance(of.get("R1"), int | float) for of in said)


def _parts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in records[0] if key.endswith(_PART)]


def label(values: Mapping[str, Any]) -> str:
    """A run in the words of some of its flags, as `shown` has them, in lines of some length."""
    lines = [""]
    for word in (f"{name} {value!s:.{_VALUE}}" for name, value in values.items()):
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        lines[-1:] = [joined] if len(joined) <= _LINE else [f"{lines[-1]},", word]
    return "\n".join(lines)


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call each run: by the flags in which they differ, else, and where that is not enough, by its folder."""
    flags = [run.flags for run in runs]
    found = [label(values) for values in shown(flags, differing(flags))]
    if len(set(found)) < len(runs):
        folders = ends([str(run.folder.resolve()) for run in runs])
        found = [f"{text}\n{end}".strip() for text, end in zip(found, folders, strict=True)]
    return found
