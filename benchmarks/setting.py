"""What a benchmark is run with."""

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
    """Where and how large.

    Attributes:
        precision: of our way; the plain one runs in float32 on a CPU, else with the published float16 weights.
        sizes: of the model.
        batch: pairs in a batch.
        scale: of the data, 1 for the sizes of the data sets.
        repeats: timed turns.
        steps: batches in a timed turn.
        folder: for files, removed afterwards.
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
        """The plain baseline's precision."""
        return "fp32" if self.device.type == "cpu" else "fp16_weights"

    @property
    def evaluation_batch(self) -> int:
        """Images or captions per evaluation batch: on a GPU eight training batches, the ratio of the default flags."""
        return self.batch * (1 if self.device.type == "cpu" else 8)

    @property
    def compiler(self) -> str:
        """The backend of torch.compile; on a CPU, where compiling is slow and brings nothing, one that only traces."""
        return "eager" if self.device.type == "cpu" else "inductor"

    @property
    def dtype(self) -> torch.dtype:
        """The type our way multiplies in."""
        return _DTYPES[self.precision]

    def scaled(self, count: int) -> int:
        """A data set's number of anything, scaled."""
        return max(8, int(self.scale * count))


def compare(what: str, seconds: dict[str, float], pairs: int) -> dict[str, Any]:
    """A row comparing ours with the plain baseline; both take `pairs`."""
    return {
        "what": what,
        "plain pairs/s": pairs / seconds["plain"],
        "ours pairs/s": pairs / seconds["ours"],
        "ratio": seconds["plain"] / seconds["ours"],
    }
