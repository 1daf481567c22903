"""Capturing figures for inspection, and disabling those of runs, which take half the time of a short training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from processor import figures


@contextmanager
def captured(*modules: ModuleType) -> Iterator[dict[str, Figure]]:
    """Collect the figures that modules draw, by file name, instead of writing files."""
    drawn: dict[str, Figure] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "save", lambda figure, file: drawn.setdefault(file.name, figure))
        yield drawn
    plt.close("all")


@contextmanager
def single_pixels() -> Iterator[None]:
    """Replace each figure of a run with a single pixel."""

    def draw(*arguments: object) -> None:
        *_, file = arguments
        assert isinstance(file, Path)
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(file)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("r1_per_epoch", "loss_histogram", "retrieval_sheet"):
            patch.setattr(figures, name, draw)
        yield
