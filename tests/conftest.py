"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import figures
from tests.float64 import in_float64


@pytest.fixture
def float64() -> Iterator[None]:
    """The test's arithmetic is float64."""
    with in_float64():
        yield


@pytest.fixture
def small_figures() -> Iterator[None]:
    """A run's own figures are not drawn."""
    with figures.of_one_pixel():
        yield
