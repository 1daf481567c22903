"""Runs as the figures need them: flags, records, history and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from processor.history import EpochHistory, read_history
from processor.records import best_record, selected_on, split_title
from tools.differing import differing_flags, display_values, distinct_suffixes, flags_of
from utils.errors import DataError, OptionError, UserError
from utils.run_folder import CHECKPOINTS, RunFolder
from utils.settings import FLAGS

_VALUE, _LINE = 24, 40  # characters of a flag's value, and of a line
_PART = "_loss"  # suffix of the loss's parts in a record: "bge_loss"


class NothingToDraw(UserError):
    """There is no data for a figure; the message says what is missing."""


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        records: the lines of metrics.jsonl.
        r1: test R1 (%) of the best checkpoint by similarity, if tested.
        split: the split that the records' "val" was measured on, "val" or "test".
    """

    folder: Path
    flags: dict[str, Any]
    records: list[dict[str, Any]]
    r1: dict[str, float]
    split: str

    @property
    def data(self) -> str:
        """The data set's name, or its annotation file."""
        return str(self.flags["dataset_name"])

    @property
    def split_title(self) -> str:
        """The validation split's name in figures."""
        return split_title(self.split)

    @property
    def validated(self) -> list[dict[str, Any]]:
        """The records of epochs with validation."""
        return [record for record in self.records if "val" in record]

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation R1; 0 without validation."""
        record = best_record(self.records, str(self.flags["trained"]))
        return record["epoch"] if record else 0

    @property
    def fused(self) -> str:
        """Name of the fused similarity, the last one in records; "" without validation."""
        return list(self.validated[0]["val"])[-1] if self.validated else ""

    def losses(self) -> dict[str, list[float]]:
        """The training loss per epoch, by embedding and in total."""
        known = {name.lower(): name for record in self.validated[:1] for name in record["val"]}
        keys = {known.get(key.removesuffix(_PART), key.removesuffix(_PART)): key for key in _parts(self.records)}
        if len(keys) != 1:
            keys["+".join(keys) or "all"] = "loss"
        return {name: [record[key] for record in self.records] for name, key in keys.items()}

    @cached_property
    def history(self) -> list[EpochHistory]:
        """The recorded history of all epochs.

        Raises:
            DataError: a file is damaged.
        """
        return read_history(self.folder)


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        OptionError: not a run folder, or without a completed epoch; a flag's value is of the wrong type.
        DataError: a file is damaged.
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
        required = ("lr", "loss", *_parts(records))
        missing = [name for name in required if not isinstance(record.get(name), int | float)]
        if "val" in record and not _are_metrics(record["val"]):
            missing.append("R1 in val")
        if missing:
            where = f"{folder / 'metrics.jsonl'}, epoch {record['epoch']}"
            raise DataError(f"{where}: no number {missing[0]}, it is damaged or from another version")
    tested = run.test_metrics().get(CHECKPOINTS[0], {})
    r1 = {row: metrics["R1"] for row, metrics in tested.items() if "R1" in metrics}
    return Run(folder, flags, records, r1, selected_on(run.facts()))


def _are_metrics(rows: object) -> bool:
    """Whether every row of a validation has at least R1."""
    values = rows.values() if isinstance(rows, dict) else [None]
    return bool(values) and all(isinstance(row, dict) and isinstance(row.get("R1"), int | float) for row in values)


def _parts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in records[0] if key.endswith(_PART)]


def label(values: Mapping[str, Any]) -> str:
    """Label of a run from some of its flags, formatted by `display_values` and wrapped."""
    lines = [""]
    for word in (f"{name} {value!s:.{_VALUE}}" for name, value in values.items()):
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        lines[-1:] = [joined] if len(joined) <= _LINE else [f"{lines[-1]},", word]
    return "\n".join(lines)


def labels(runs: Sequence[Run]) -> list[str]:
    """Labels of runs: their differing flags and, if these aren't unique, also the folder."""
    flags = [run.flags for run in runs]
    texts = [label(values) for values in display_values(flags, differing_flags(flags))]
    if len(set(texts)) < len(runs):
        folders = distinct_suffixes([str(run.folder.resolve()) for run in runs])
        texts = [f"{text}\n{folder}".strip() for text, folder in zip(texts, folders, strict=True)]
    return texts
