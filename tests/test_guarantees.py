"""docs/guarantees.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_named_in_guarantees_exist():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/guarantees.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    files = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    tests = {(file, name) for file, text in files.items() for name in re.findall(r"^def (test_\w+)", text, re.M)}
    assert set(named) <= tests, set(named) - tests
