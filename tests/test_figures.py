"""Figures are labelled, and legends don't hide curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from processor import figures
from tests.figures import captured
from tools.reproduce import curves as reproduced
from tools.reproduce.tables import TABLES
from tools.visualize import curves
from tools.visualize.runs import Run
from utils import figures as house
from utils.options import defaults


@pytest.fixture
def drawn() -> Iterator[dict[str, Figure]]:
    with captured(curves, house) as found:
        yield found


def run(folder: str, split: str = "val", **flags: object) -> Run:
    records = [{"epoch": n, "val": {"BGE+TSE": {"R1": 10.0 * n}}} for n in (1, 2, 3)]
    return Run(Path(folder), {**defaults(), **flags}, records, {}, split)


@pytest.mark.parametrize(
    ("splits", "label"),
    [
        (["val"], "R1 on validation (%)"),
        (["test"], "R1 on test (%)"),
        (["val", "test"], "R1 on validation or test (%)"),
    ],
)
def test_figures_name_the_split_that_selects_the_best_epoch(drawn, splits, label):
    curves.r1_of_runs([run(str(n), split, seed=n) for n, split in enumerate(splits)], Path("runs"))
    assert drawn["runs"].axes[0].get_ylabel() == label


@pytest.mark.parametrize("count", [2, 4, 9])
def test_the_legend_of_runs_does_not_cover_the_plot(drawn, count):
    ratio = {"noisy_rate": 0.123456789, "select_ratio": 0.4}
    runs = [
        run(str(n), division="all" if n % 2 else "ccd", tau=0.01 + n / 1000, **(ratio if n else {}))
        for n in range(count)
    ]
    curves.r1_of_runs(runs, Path("r1"))
    figure = drawn["r1"]
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    plot, beside = axes.get_window_extent(), legend.get_window_extent()
    assert not plot.overlaps(beside)
    assert plot.width > 3.4 * figure.dpi
    assert 0 <= beside.y0 < beside.y1 <= figure.bbox.height
    assert beside.x1 <= figure.bbox.width


def test_each_data_set_has_its_own_axes(drawn):
    runs = [
        run("a", dataset_name="RSTPReid"),
        run("b", dataset_name="/some/where/own.json"),
        run("c", dataset_name="RSTPReid", tau=0.02),
    ]
    curves.r1_of_runs(runs, Path("r1"))
    panels = {axes.get_title(): len(axes.lines) for axes in drawn["r1"].axes}
    assert panels == {"RSTPReid": 2, "own.json": 1}
    assert len(drawn["r1"].legends[0].get_texts()) == 3


def test_a_retrieval_sheet_names_its_source_and_explains_its_colours(drawn, tmp_path):
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png")
    captions = [figures.Ranked("a man", np.array([0.5]), np.array([False]))]
    figures.retrieval_sheet(captions, [tmp_path / "a.png"], "run/best.pth on X, test, by BGE", Path("sheet"))
    (title,) = [text.get_text() for text in drawn["sheet"].texts]
    assert title.splitlines()[0] == "run/best.pth on X, test, by BGE"
    assert "blue: correct identity" in title
    assert drawn["sheet"].axes[1].get_title() == "✗ 0.50"


def test_a_study_of_many_rows_has_a_panel_for_each_noise_rate(monkeypatch):
    """A method's line looks the same in all of them, and no other's does."""
    rows = [[SimpleNamespace(row=row.on_synthpedes())] for row in TABLES["methods"].rows]
    monkeypatch.setattr(reproduced, "_curve", lambda run: {0: 10.0, 1: 20.0 + 100 * run.row.noise})
    with captured(reproduced, house) as drawn:
        assert reproduced.draw_curves(rows, Path("study"))
    panels = {axes.get_title(): axes.lines for axes in drawn["study"].axes}
    assert list(panels) == ["0% noise", "20% noise", "50% noise", "80% noise"]
    looks = {}
    for heading, lines in panels.items():
        for line in lines:
            look = (line.get_color(), line.get_linestyle(), line.get_marker(), line.get_markerfacecolor())
            assert looks.setdefault(line.get_label(), look) == look
            assert 100 * line.get_ydata()[-1] == pytest.approx(2000 + 100 * float(heading.split("%")[0]))
    assert len(set(looks.values())) == len(looks) == 9
    assert [text.get_text() for text in drawn["study"].legends[0].get_texts()] == list(looks)
