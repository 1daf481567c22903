"""The documentation: its examples run, and every link, flag and module that it names exists.

A code block that begins with ```sh run is run here, line by line, on a small data set; ```sh run slow marks one that
trains or needs a trained run.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import test as evaluation_root
import train as training_root
from datasets.noise import draw_permutation
from tests import datasets_on_disk, figures
from tests.galleries import write_gallery, write_run
from tests.test_training import SMALL

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "datasets", "model", "processor", "solver", "tools", "utils")
NOT_OURS = {".venv", ".pytest_cache", "data", "logs"}
PAGES = sorted(path for path in ROOT.glob("**/*.md") if not NOT_OURS & {*path.relative_to(ROOT).parts})
DOCS = [page for page in PAGES if page.parent.name == "docs" or page.parent == ROOT]
TESTED_ELSEWHERE = {"extending.md", "guarantees.md"}  # run by test_extending.py, and by make test
BLOCK = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.S | re.M)
EXAMPLES = [
    pytest.param(code, marks=[pytest.mark.slow] * ("slow" in info), id=f"{page.name}-{number}")
    for page in DOCS
    for number, (_, info, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    if "run" in info.split()
]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.fixture(scope="module")
def root_dir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for dataset_name in datasets_on_disk.FORMATS:
        datasets_on_disk.write(root, dataset_name)
    np.save(root / "noise.npy", draw_permutation(24, 0.5))
    return root


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, root_dir) -> Path:
    run_dir = write_run(tmp_path_factory.mktemp("runs") / "untrained")
    file = run_dir / "configs.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(config | {"dataset_name": "RSTPReid", "root_dir": str(root_dir)}), encoding="utf-8")
    return run_dir


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root_dir) -> Path:
    logs = tmp_path_factory.mktemp("runs")
    given = ["--dataset_name", "RSTPReid", "--root_dir", str(root_dir), "--output_dir", str(logs)]
    without_figures(training_root, small(given, root_dir))
    (run_dir,) = logs.glob("*/*")
    return run_dir


def small(arguments: Sequence[str], root_dir: Path) -> list[str]:
    """Arguments of train.py, with small defaults for those the example doesn't give."""
    if "--resume" in arguments:
        return ["2" if word == "80" else word for word in arguments]
    less = [*SMALL, "--num_epoch", "1", "--warmup_epochs", "0", "--precision", "fp32"]
    if "--pretrain_choice" in arguments:
        less = less[2:]
    return [*arguments, *less, "--noisy_rate", "0.5", "--noisy_file", str(root_dir / "noise.npy")]


def without_figures(root: ModuleType, arguments: Sequence[str]) -> None:
    with figures.single_pixels():
        root.main(arguments)


def program(module: str) -> Callable[[list[str]], None]:
    """The `main` that python -m would run."""
    package = find_spec(module)
    assert package, f"no module {module}"
    return importlib.import_module(f"{module}.__main__" if package.submodule_search_locations else module).main


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code, root_dir, tmp_path, monkeypatch, request):
    slow = request.node.get_closest_marker("slow")
    run_dir = shutil.copytree(
        request.getfixturevalue("trained" if slow else "untrained"), tmp_path / "logs/RSTPReid/run"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    stands_for = {name: str(run_dir) for name in ("RUN_DIR", "/path/to/their_run")} | {"/path/to/data": str(root_dir)}
    if "FOLDER" in code:
        gallery = write_gallery(tmp_path / "gallery", persons=3)
        picture = next(gallery.folder.glob("*/*.jpg"))
        stands_for |= {"FOLDER": str(gallery.folder), "PICTURE": str(picture)}
        (tmp_path / "captions.txt").write_text("\n".join(gallery.captions.values()), encoding="utf-8")
    for line in commands(code):
        words = [reduce(lambda word, name: word.replace(name, stands_for[name]), stands_for, word) for word in line]
        assert words[0] == "python", words
        if words[1] == "train.py":
            without_figures(training_root, small(words[2:], root_dir))
        elif words[1] == "test.py":
            without_figures(evaluation_root, [*words[2:], "--device", "cpu"])
        else:
            assert words[1] == "-m"
            with contextlib.suppress(SystemExit):  # 1 of tools.check_data: it finds no index of this size
                program(words[2])(words[3:])


def test_every_page_has_an_example_that_runs():
    have = {str(example.id).rpartition("-")[0] for example in EXAMPLES}
    assert {page.name for page in PAGES if page.parent.name == "docs"} == have | TESTED_ELSEWHERE


@cache
def anchors(page: Path) -> set[str]:
    """GitHub's anchors for a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@cache
def project_flags() -> set[str]:
    """All flags declared by the project's programs."""
    from options import build_parser

    declared = set(re.findall(r"--[a-zA-Z]\w*", build_parser("").format_help()))
    sources = [*ROOT.glob("*.py"), *ROOT.glob("tools/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("utils/*.py")]
    for file in sources:
        declared |= set(re.findall(r'"(--[a-z][\w-]*)"', file.read_text(encoding="utf-8")))
    return declared


NOT_PRINTED = ("`ensurepip is not available`", "`the page's test needs a browser`")  # but by Python and by a test


def test_messages_quoted_in_troubleshooting_exist_in_the_code():
    files = [file for of in ("*.py", *(f"{of}/**/*.py" for of in FOLDERS)) for file in ROOT.glob(of)]
    sources = re.sub(r'"\n\s*f?"', "", "".join(path.read_text(encoding="utf-8") for path in files))
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)
    quoted = [message for row in rows if not row.startswith(NOT_PRINTED) for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 15
    for message in quoted:
        for part in re.split(
            r"…|\b[A-Z]\b%?|\b[\w.]+\.json\b|PyTorch|seems to be GBK|the loss", message
        ):  # a message's placeholders
            assert part.strip() in sources, f"{message}: {part}"


OTHERS = {
    *("--nproc_per_node", "--logdir", "--index-url", "--follow-tags"),  # torchrun, TensorBoard, pip, git
    *("--sharpness", "--kept"),  # of docs/extending.md's examples
    *("--its_name",),  # and of its table
}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_flags_and_modules_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)) <= project_flags() | OTHERS
    for module in re.findall(r"python -m\s+((?:tools|benchmarks|tests)[.\w]*\w)", text):
        assert callable(program(module)), module
    for file in re.findall(r"(?<![\w/])((?:configs|docs|tools|tests|solver|model|datasets|utils)/[\w./-]*\w)", text):
        assert (ROOT / file).exists() or (page.parent / file).exists(), file
