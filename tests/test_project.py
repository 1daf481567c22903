"""Consistency of the project's files: dependencies, versions, workflows, hooks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = {file.stem.partition("-")[2]: file for file in ROOT.glob("requirements*.txt")}
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def listed(file: Path) -> set[str]:
    """A file's own requirements, without included files."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return {str(Requirement(line)) for line in lines if line and not line.startswith("-r ")}


def included(file: Path) -> set[str]:
    """The names of the requirements files that a file includes: "" of requirements.txt, demo, milvus, …"""
    return set(re.findall(r"^-r requirements-?(\w*)\.txt", file.read_text(encoding="utf-8"), re.M))


def test_dependencies_and_extras_are_those_of_the_requirements_files():
    extras = PROJECT["optional-dependencies"]
    assert {"", *extras} == set(REQUIREMENTS)
    assert {str(Requirement(line)) for line in PROJECT["dependencies"]} == listed(REQUIREMENTS[""])
    for name, lines in extras.items():
        requirements = [Requirement(line) for line in lines]
        own = {str(requirement) for requirement in requirements if requirement.name != PROJECT["name"]}
        others = {extra for requirement in requirements for extra in requirement.extras if requirement.name == "rde"}
        assert own == listed(REQUIREMENTS[name]), name
        assert others == included(REQUIREMENTS[name]) - {""}, name
        assert included(REQUIREMENTS[name]), f"{name}: installs requirements.txt, directly or by another file"


def test_every_requirement_has_a_single_lower_bound():
    for file in REQUIREMENTS.values():
        for requirement in map(Requirement, listed(file)):
            (bound,) = requirement.specifier
            assert bound.operator == ">="


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["preferred-citation"]["title"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_call_existing_targets_and_files(file):
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"], name
        for step in job["steps"]:
            called = re.findall(r"\bmake ([\w-]+)", step.get("run", ""))
            assert set(called) <= targets
            for mentioned in re.findall(r"requirements[\w-]*\.txt", step.get("run", "")):
                assert (ROOT / mentioned).is_file()


def test_the_hooks_run_a_ruff_that_the_requirements_allow():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = (repo for repo in hooks["repos"] if repo["repo"].endswith("/ruff-pre-commit"))
    (required,) = (r for r in map(Requirement, listed(REQUIREMENTS["dev"])) if r.name == "ruff")
    assert required.specifier.contains(ruff["rev"].removeprefix("v"))
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
