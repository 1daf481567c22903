"""The house's picture stays true: who imports whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from datasets import places, samplers
from solver import losses, optimizer, schedule
from utils import flags

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "utils": set(),
    "datasets": {"utils"},
    "model": {"utils"},
    "solver": {"utils"},
    "processor": {"solver", "utils"},
    "train.py": {"datasets", "model", "solver", "processor", "utils"},
    "test.py": {"datasets", "model", "solver", "processor", "utils"},
}
PROJECT = {"train", "test", "datasets", "model", "solver", "processor", "utils", "tools", "tests", "benchmarks"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found & PROJECT


@pytest.mark.parametrize("place", ALLOWED)
def test_a_folder_imports_only_what_is_below_it(place):
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    assert files
    for file in files:
        wrong = imports(file) - ALLOWED[place] - {place}
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_the_flags_name_what_the_solver_has():
    assert flags.LOSSES == losses.LOSSES
    assert tuple(places.DATASETS) == flags.DATASETS
    assert flags.FLAGS["sampler"].choices == samplers.SAMPLERS
    assert flags.FLAGS["optimizer"].choices == optimizer.OPTIMIZERS
    assert flags.FLAGS["lrscheduler"].choices == schedule.SCHEDULES
    assert flags.FLAGS["warmup_method"].choices == schedule.WARMUPS
