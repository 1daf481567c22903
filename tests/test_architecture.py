"""Import direction between packages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "utils": set(),
    "datasets": {"utils"},
    "model": {"utils"},
    "solver": {"utils"},
    "processor": {"solver", "utils"},
    "options.py": {"datasets", "model", "solver", "processor", "utils"},
    "announce.py": {"datasets", "model", "solver", "processor", "utils"},
    "compatibility.py": {"model", "solver", "utils"},
    "assembly.py": {"announce", "compatibility", "datasets", "model", "solver", "processor", "utils"},
    "train.py": {"options", "assembly", "utils"},
    "test.py": {"options", "assembly", "utils"},
}
PROJECT = {place.removesuffix(".py") for place in ALLOWED} | {"tools", "tests", "benchmarks"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found & PROJECT


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_respect_the_layering(place):
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    assert files
    for file in files:
        wrong = imports(file) - ALLOWED[place] - {place}
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(wrong)}"
