"""Records of an index, independent of its storage."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Stamp(NamedTuple):
    """Size and modification time (ns) of a file, to detect changes."""

    size: int
    mtime: int


class Row(NamedTuple):
    """Record of a file. Its path is relative to the gallery; `error` is the reason for having no vector."""

    path: Path
    stamp: Stamp
    vector: np.ndarray | None
    error: str | None


class About(NamedTuple):
    """Gallery and model of an index.

    `run` and `checkpoint` are the model's last known location; `widths` are the embeddings' widths in vector order.
    """

    gallery: Path
    run: Path
    checkpoint: Path
    fingerprint: str
    widths: dict[str, int]

    @property
    def width(self) -> int:
        """Width of a vector."""
        return sum(self.widths.values())

    @property
    def layout(self) -> str:
        """Description of a vector's layout."""
        names = ", ".join(name.lower() for name in self.widths)
        return f"[{names}] / sqrt({len(self.widths)})"

    def to_json(self) -> str:
        """Serialise; see `from_json`."""
        return json.dumps(self._asdict(), default=str)

    @classmethod
    def from_json(cls, text: str) -> About:
        """Inverse of `to_json`."""
        content = json.loads(text)
        if "widths" not in content:  # written when BGE and TSE were the only embeddings
            bge, width = content.pop("bge_width"), content.pop("width")
            content["widths"] = {"BGE": bge, "TSE": width - bge}
        about = cls(**content)
        return about._replace(gallery=Path(about.gallery), run=Path(about.run), checkpoint=Path(about.checkpoint))


def identity(path: Path) -> int:
    """A file's id: 63 bits of a hash of its path in the gallery, the same in every index."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path.as_posix())).digest()[:8], "big") >> 1
