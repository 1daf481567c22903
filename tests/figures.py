"""Runs without their figures, which take more than half of the time of a short training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from processor import figures


@contextmanager
def of_one_pixel() -> Iterator[None]:
    """Within, each figure that a run draws of itself is a single pixel."""

    def draw(*arguments: object) -> None:
        *_, file = arguments
        assert isinstance(file, Path)
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(file)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("r1_per_epoch", "loss_histogram", "retrieval_sheet"):
            patch.setattr(figures, name, draw)
        yield
