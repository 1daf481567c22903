"""Fixtures shared by test files. torch and matplotlib are imported inside them, for a fast pytest-xdist controller."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from datasets.annotations import Split

# The slowest files are started first, so that no worker is left with one at the end.
LONG = (
    "distributed",
    "arithmetic",
    "gpu_benchmark",
    "training",
    "search",
    "visualize",
    "benchmarks",
    "reproduce",
    "page",
    "platforms",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set in RSTPReid's format; test files may override it."""
    from tests import datasets_on_disk

    folder = tmp_path_factory.mktemp("data")
    datasets_on_disk.write(folder, "RSTPReid")
    return folder


@pytest.fixture(scope="module")
def split(root: Path) -> Split:
    """The training split of `root`'s data set."""
    from datasets.annotations import read_splits

    return read_splits("RSTPReid", root, ["train"])["train"]


@pytest.fixture(autouse=True)
def close_log_files() -> Iterator[None]:
    """Close the test's log files, as their folder is removed and the next test must not write to them."""
    yield
    logger = logging.getLogger("rde")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def float64() -> Iterator[None]:
    """Run the test in float64."""
    from tests.float64 import in_float64

    with in_float64():
        yield


@pytest.fixture
def small_figures() -> Iterator[None]:
    """Don't draw a run's figures."""
    from tests.figures import single_pixels

    with single_pixels():
        yield


@pytest.fixture
def whole_run_here(monkeypatch: pytest.MonkeyPatch, small_figures: None) -> None:  # noqa: ARG001
    """Let `benchmarks.whole_run` train in this process; a new one would take seconds to import torch."""
    import train
    from benchmarks import whole_run

    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert command[:2] == [sys.executable, train.__file__]
        train.main(command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(whole_run, "subprocess", SimpleNamespace(run=run))
