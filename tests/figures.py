"""Figures that are kept to be looked at, and runs without theirs, which take half of the time of a short training."""

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
def kept(*modules: ModuleType) -> Iterator[dict[str, Figure]]:
    """Within, the figures that modules draw are kept by their names, in place of files."""
    found: dict[str, Figure] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "save", lambda figure, file: found.setdefault(file.name, figure))
        yield found
    plt.close("all")


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
