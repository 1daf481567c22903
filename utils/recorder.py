"""The records a run writes each epoch: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils.files import with_filename, write_text
from utils.run_folder import read_records

_FLAGS = ".flags"  # suffix of the file with the hyperparameters


def flatten(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{"val": {"BGE": {"R1": 1}}} → {"val/BGE/R1": 1}; non-numbers are omitted."""
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat


def show_pictures(writer: SummaryWriter, files: Iterable[Path], epoch: int) -> None:
    """Add pictures to TensorBoard, as "figures/<name>"."""
    for file in files:
        with Image.open(file) as picture:
            writer.add_image(f"figures/{file.stem}", np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")


def show_hyperparameters(run_dir: Path, flags: Mapping[str, Any], metrics: Mapping[str, float], epoch: int) -> None:
    """Add a run's flags and results to TensorBoard's hyperparameter table, replacing older ones.

    Args:
        metrics: results by tag, also added as scalars.
        epoch: the epoch of the results.
    """
    for older in run_dir.glob(f"events.out.tfevents.*{_FLAGS}"):
        older.unlink()
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in flags.items()
    }
    with SummaryWriter(str(run_dir), filename_suffix=_FLAGS) as writer:
        assert writer.file_writer is not None
        for summary in hparams(plain, dict(metrics)):  # add_hparams would create a separate run
            writer.file_writer.add_summary(summary)
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, epoch)


class Recorder:
    """Appends one record per epoch to `run_dir/metrics.jsonl` and to TensorBoard's events.

    Args:
        epochs_done: number of completed epochs; records of later ones are dropped.
    """

    def __init__(self, run_dir: Path, epochs_done: int) -> None:
        self.file = run_dir / "metrics.jsonl"
        # A resumed run writes the epochs after its checkpoint again.
        self.records = [record for record in read_records(self.file) if record["epoch"] <= epochs_done]
        write_text(self.file, "".join(json.dumps(record) + "\n" for record in self.records))
        self._tensorboard = SummaryWriter(str(run_dir), purge_step=epochs_done + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; it must contain `epoch`."""
        self.records.append(record)
        with with_filename(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        for name, value in flatten({key: value for key, value in record.items() if key != "epoch"}).items():
            self._tensorboard.add_scalar(name, value, record["epoch"])
        self._tensorboard.flush()

    def add_pictures(self, folder: Path, epoch: int) -> None:
        """Show the PNG files of a folder in TensorBoard."""
        show_pictures(self._tensorboard, sorted(folder.glob("*.png")), epoch)

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._tensorboard.close()
