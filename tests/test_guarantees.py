"""docs/guarantees.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_a_guarantee_names_exists():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/guarantees.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    trees = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in {file for file, _ in named}}
    tests = {(file, node.name) for file, tree in trees.items() for node in tree.body if hasattr(node, "name")}
    assert set(named) <= tests, set(named) - tests
