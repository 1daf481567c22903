"""Windows and macOS, emulated on Linux: without Unix-only modules."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "datasets", "model", "processor", "solver", "tools", "utils")
FILES = [file.relative_to(ROOT) for of in ("*.py", *(f"{of}/**/*.py" for of in FOLDERS)) for file in ROOT.glob(of)]
WORK = """import importlib, runpy, sys
sys.modules.update(dict.fromkeys(("fcntl", "resource")))
modules, programs = (names.split() for names in sys.argv[1:])
for module in modules:
    importlib.import_module(module)
sys.argv[1:] = ["--help"]
for program in programs:
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as ended:
        assert ended.code == 0, program
"""


@pytest.mark.slow
def test_modules_import_and_help_works_without_unix_only_modules():
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in FILES]
    programs = [str(file) for file in FILES if "run_program(main)" in (ROOT / file).read_text(encoding="utf-8")]
    assert len(modules) > 50
    assert {"train.py", "test.py", "tools/search/__main__.py"} <= set(programs)
    if not find_spec("gradio"):
        modules.remove("tools.search.page")
    command = [sys.executable, "-c", WORK, " ".join(modules), " ".join(programs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
