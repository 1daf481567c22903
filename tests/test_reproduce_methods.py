"""The table of methods: values besides retrieval metrics, and its figure."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from processor.history import vote_arrays, write_epoch
from solver.correspondence.base import Vote
from solver.settings import OBJECTIVES, SoftmaxSettings
from tools.reproduce import __main__ as reproduce
from tools.reproduce import noise
from tools.reproduce.runs import Run
from utils.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path) -> Run:
    (row,) = reproduce.select("methods", "decl", "SynthPEDES", 0.5)
    run_dir = tmp_path / "SynthPEDES/20260101_000000_decl_DECL"
    run_dir.mkdir(parents=True)
    (run_dir / "configs.yaml").write_text("num_epoch: 2\n")
    metrics = {name: {"BGE": {"R1": 1.0}} for name in ("best.pth", "last.pth")}
    (run_dir / "test_metrics.json").write_text(json.dumps(metrics))
    records = [{"epoch": 1, "seconds": 2.0, "ccd": None}, {"epoch": 2, "seconds": 3.0, "ccd": {"seconds": 0.5}}]
    (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    return Run(row, 1, tmp_path, "/nowhere", ())


def write_votes(run: Run, clean: list[bool], probability: list[float], truly: list[bool], excluded: list[int]) -> None:
    vote = Vote(np.zeros(len(clean)), np.array(probability), np.array(clean), None)
    arrays = vote_arrays({"uncertainty": vote}, {}, np.array(truly), np.array(excluded))
    finished = run.finished()
    assert finished is not None
    write_epoch(finished.path, 2, arrays)


def test_detection_of_wrong_pairs_is_scored(run):
    assert run.detection() == {"seconds": 5.5}
    write_votes(run, [True, False, False, True], [0.9, 0.1, 0.4, 0.8], [True, False, True, False], [2])
    found = run.detection()
    assert found["precision"] == found["recall"] == 50, "one of two flagged is wrong, one of two wrong is flagged"
    # By decreasing suspicion: wrong, right, wrong, right, and last the excluded pair, which has no vote.
    assert found["average precision"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_nothing_is_scored_without_wrong_pairs(run):
    write_votes(run, [True, False], [0.9, 0.1], [True, True], [])
    assert run.detection() == {"seconds": 5.5}


def report(file: Path, *noises: float) -> Path:
    results = {
        choice: {"R1": {"values": [50.0], "mean": 50.0, "spread": None}}
        for choice in ("best by validation", "last", "best by test")
    }
    file.write_text(json.dumps({"rows": [{"title": "RDE", "noise": of, "results": results} for of in noises]}))
    return file


def test_the_figure_is_drawn_from_a_report(tmp_path):
    noise.main([str(report(tmp_path / "table.json", 0, 0.5)), str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_figures_numbers_do_not_replace_a_report(tmp_path):
    table = report(tmp_path / "table.json", 0, 0.5)
    before = table.read_text()
    with pytest.raises(UserError, match=r"would replace the report"):
        noise.main([str(table), str(tmp_path / "table.png")])
    assert table.read_text() == before
    noise.main([str(table), str(tmp_path / "figure.png")])
    noise.main([str(tmp_path / "figure.json"), str(tmp_path / "figure.png")])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: report(file, 0.5), "has no row with runs at two noise rates"),
        (lambda file: file.write_text("[]"), "is not a report"),
        (lambda _: None, "is not a report"),
    ],
)
def test_unsuitable_reports_are_refused(tmp_path, write, message):
    write(tmp_path / "table.json")
    with pytest.raises(UserError, match=message):
        noise.main([str(tmp_path / "table.json"), str(tmp_path / "figure.png")])


@pytest.mark.parametrize(
    ("page", "heading"), [("README.md", "## Results"), ("docs/results.md", "## Methods under noise")]
)
def test_pages_print_the_figures_numbers(page, heading, tmp_path):
    """And docs/methods.json is what the command writes from it."""
    kept = ROOT / "docs/methods.json"
    noise.main([str(kept), str(tmp_path / "methods.png")])
    assert (tmp_path / "methods.json").read_text() == kept.read_text()
    printed: dict[str, list[list[str]]] = defaultdict(list)
    for line in (ROOT / page).read_text(encoding="utf-8").partition(heading)[2].splitlines():
        if line.count(" ± ") >= 4:
            title, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
            printed[{"RDE: TAL with CCD": "RDE"}.get(title, title.split(", which")[0])].append(cells[:4])
    found: dict[str, list[dict]] = defaultdict(list)
    for row in json.loads(kept.read_text())["rows"]:
        found[row["title"]].append(row["results"])
    assert len(found) == 9
    assert printed.keys() == (found.keys() - {"RDE, soft labels"} if page == "README.md" else found.keys())
    for title, tables in printed.items():
        for choice, cells in zip(("last", "best by validation"), tables, strict=False):
            r1 = [results[choice]["R1"] for results in found[title]]
            assert cells == [f"{of['mean']:.1f} ± {of['spread']:.1f}" for of in r1]
        assert len(tables) == (1 if page == "README.md" else 2)


def test_the_documented_reversed_sdm_equals_pytorchs_kl_divergence(monkeypatch):
    """KL(q‖p) as PyTorch computes it, with q of two pairs of one person."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/results.md").read_text(encoding="utf-8"), re.S | re.M)
    scope: dict[str, Any] = {}
    monkeypatch.setattr(OBJECTIVES, "register", lambda _: lambda objective: objective)
    exec(code, scope)
    loss = scope["ReversedSDM"](SoftmaxSettings())
    similarity = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).div(10)
    pids = torch.tensor([0, 1, 1, 2])
    positive = pids[:, None] == pids
    target = positive.float() / positive.sum(dim=1, keepdim=True)
    log_p = (similarity / SoftmaxSettings().temperature).log_softmax(dim=1)
    expected = torch.nn.functional.kl_div(log_p, target, reduction="none").sum(dim=1)
    torch.testing.assert_close(loss.one_direction(similarity, positive), expected)
