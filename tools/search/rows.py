"""What an index keeps of every file, wherever it keeps it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Stamp(NamedTuple):
    """By what a changed file is known: its length and time of change in nanoseconds."""

    size: int
    mtime: int


class Row(NamedTuple):
    """What is kept of a file; its path starts from the gallery's folder. `error` says why there is no vector."""

    path: Path
    stamp: Stamp
    vector: np.ndarray | None
    error: str | None


class About(NamedTuple):
    """What an index is of: a folder of pictures and a model.

    `run` and `checkpoint` say where the model was then, `widths` the width of each embedding in the order of a vector.
    """

    gallery: Path
    run: Path
    checkpoint: Path
    fingerprint: str
    widths: dict[str, int]

    @property
    def width(self) -> int:
        """Of a vector."""
        return sum(self.widths.values())

    @property
    def layout(self) -> str:
        """What a vector is made of."""
        names = ", ".join(name.lower() for name in self.widths)
        return f"[{names}] / sqrt({len(self.widths)})"

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(self._asdict(), default=str)

    @classmethod
    def from_json(cls, text: str) -> About:
        """Undo `to_json`."""
        content = json.loads(text)
        if "widths" not in content:  # written when there were no others than BGE and TSE
            bge, width = content.pop("bge_width"), content.pop("width")
            content["widths"] = {"BGE": bge, "TSE": width - bge}
        about = cls(**content)
        return about._replace(gallery=Path(about.gallery), run=Path(about.run), checkpoint=Path(about.checkpoint))


def identity(path: Path) -> int:
    """A file's number in every index: 63 bits of a digest of its path from the gallery."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path.as_posix())).digest()[:8], "big") >> 1
