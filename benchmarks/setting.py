"""The setting of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.backbones.clip_config import ClipConfig

Rows = list[dict[str, Any]]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """Device, precision and sizes of a benchmark.

    Attributes:
        precision: our model's; see `plain_precision` for the baseline's.
        sizes: the model's configuration.
        batch: pairs per batch.
        scale: size of the data relative to the data sets.
        repeats: number of timed repetitions.
        steps: batches per timed repetition.
        folder: temporary folder for files.
    """

    device: torch.device
    precision: str
    sizes: ClipConfig
    batch: int
    scale: float
    repeats: int
    steps: int
    folder: Path

    @property
    def plain_precision(self) -> str:
        """The plain baseline's precision: float32 on a CPU, else the published float16 weights."""
        return "fp32" if self.device.type == "cpu" else "fp16_weights"

    @property
    def evaluation_batch(self) -> int:
        """Images or captions per evaluation batch: on a GPU eight times `batch`, as with the default flags."""
        return self.batch * (1 if self.device.type == "cpu" else 8)

    @property
    def compiler(self) -> str:
        """The backend of torch.compile: on a CPU, where compiling is slow and doesn't help, one that only traces."""
        return "eager" if self.device.type == "cpu" else "inductor"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of our matrix products."""
        return _DTYPES[self.precision]

    def scaled(self, count: int) -> int:
        """Scale a count of the data set."""
        return max(8, int(self.scale * count))


def compare(what: str, seconds: dict[str, float], pairs: int) -> dict[str, Any]:
    """A row comparing ours with the plain baseline; both take `pairs`."""
    return {
        "what": what,
        "plain pairs/s": pairs / seconds["plain"],
        "ours pairs/s": pairs / seconds["ours"],
        "ratio": seconds["plain"] / seconds["ours"],
    }
