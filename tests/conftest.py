"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.float64 import in_float64


@pytest.fixture
def float64() -> Iterator[None]:
    """The test's arithmetic is float64."""
    with in_float64():
        yield
