"""Fixtures of several test files. They import torch and matplotlib, so that what only distributes tests need not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from datasets.annotations import Split

# The files that take the longest. They are begun first, so that no process is left alone with one in the end.
LONG = ("distributed", "arithmetic", "training", "search", "visualize", "benchmarks", "reproduce", "page", "platforms")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set in RSTPReid's format; files that need another one have a `root` of their own."""
    from tests import datasets_on_disk

    folder = tmp_path_factory.mktemp("data")
    datasets_on_disk.write(folder, "RSTPReid")
    return folder


@pytest.fixture(scope="module")
def split(root: Path) -> Split:
    """Its training split."""
    from datasets.annotations import read_splits

    return read_splits("RSTPReid", root, ["train"])["train"]


@pytest.fixture
def float64() -> Iterator[None]:
    """The test's arithmetic is float64."""
    from tests.float64 import in_float64

    with in_float64():
        yield


@pytest.fixture
def small_figures() -> Iterator[None]:
    """A run's own figures are not drawn."""
    from tests.figures import of_one_pixel

    with of_one_pixel():
        yield
