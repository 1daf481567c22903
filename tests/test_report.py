"""A run's report in a real browser: of RDE, IRRA and DECL, of one epoch and own captions, and of incomplete runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from processor.evaluation import Encoded
from tests import datasets_on_disk, figures
from tests.test_method_runs import METHODS
from tests.test_page import browser  # noqa: F401  (a fixture)
from tests.test_training import SMALL, arguments, printed_by
from tools import readme_pictures, train_and_report
from tools.report import __main__ as report
from tools.report import page as report_page
from tools.report import sections
from tools.report.page import Subject, escaped
from tools.report.retrievals import Answers, one_per_person
from tools.visualize.runs import read_run
from utils.errors import DataError, UserError, brief
from utils.run_folder import RunFolder

HOSTILE = 'a <b>red</b> "coat" & <script>document.title=2</script><img src="https://a.example/x">'


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """RSTPReid, and a user's own file beside it; every first caption is hostile."""
    folder = tmp_path_factory.mktemp("data")
    listed = datasets_on_disk.entries("RSTPReid")
    for entry in listed:
        entry["captions"][0] = f"{HOSTILE} {entry['captions'][0]}"
    datasets_on_disk.write(folder, "RSTPReid", listed)
    datasets_on_disk.write(folder, "RSTPReid", listed, file="own.json")
    return folder


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> dict[str, Path]:
    """Trained runs with their reports, by kind."""
    logs = tmp_path_factory.mktemp("logs")
    own = ["--dataset_name", str(root / "RSTPReid/own.json"), *SMALL, "--num_epoch", "1", "--warmup_epochs", "0"]
    given = {
        "rde": arguments(root, logs / "rde", "--num_epoch", "2"),
        "irra": arguments(root, logs / "irra", *METHODS["irra"].split(), "--num_epoch", "2"),
        "decl": arguments(root, logs / "decl", *METHODS["decl"].split(), "--num_epoch", "2"),
        "own": [*own, "--output_dir", str(logs / "own")],
    }
    found = {}
    for name, flags in given.items():
        with figures.single_pixels():
            printed = printed_by(train_and_report, *flags)
        (found[name],) = (logs / name).glob("*/*")
        assert printed.splitlines()[-1] == f"report: {found[name] / 'report.html'}"
    return found


LACKS = {
    "rde": [],
    "irra": ["Skipped: no division of the pairs is recorded (--division all)."],
    "decl": [],
    "own": ["The wrong captions are not known.", "After one epoch, each curve is a point."],
}


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1366])
@pytest.mark.parametrize("name", LACKS)
def test_a_report_opens_offline_and_fits_the_screen(runs, browser, name, width):  # noqa: F811
    asked: list[str] = []
    scheme = {390: "dark", 1366: "light"}[width]
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto((runs[name] / "report.html").as_uri())
    assert page.title() == f"Report of {runs[name].name}", "no caption was run"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    loaded = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert all(loaded)
    assert len(loaded) > 20
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    text = page.locator("main").inner_text()
    assert HOSTILE in text
    assert page.locator("script, article b:not(small b)").count() == 0
    for sentence in LACKS[name]:
        assert sentence in text
    assert text.count("Skipped: ") == 2 * (name == "irra"), text
    assert ("ground truth: " in text) == (name in ("rde", "decl"))
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"dark": "rgb(22, 24, 27)", "light": "rgb(255, 255, 255)"}[scheme]
    context.close()


@pytest.mark.parametrize(("facts", "split"), [({"selected_on": "test"}, "test"), ({}, "val")])
def test_results_name_the_split_that_selected_the_best_epoch(tmp_path, facts, split):
    metrics = {"BGE": {"R1": 30.0}}
    run: Any = SimpleNamespace(folder=tmp_path, records=[{"epoch": 1, "val": metrics}], flags={"trained": "BGE"})
    RunFolder(tmp_path).write_config({}, facts)
    (tmp_path / "start_metrics.json").write_text(json.dumps({"val": metrics}))
    page = sections.results(Subject(run, torch.device("cpu")))
    assert [f"starting weights, {split}" in page, f"epoch 1, the best, {split}" in page] == [True, True]


@pytest.mark.slow
def test_sections_a_run_lacks_are_replaced_by_the_reason(runs, root, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copytree(root / "RSTPReid", tmp_path / "data/RSTPReid", ignore=shutil.ignore_patterns("*.jpg", "*.cache*"))
    page = report.report(runs["rde"], str(tmp_path / "data"), str(tmp_path / "a.html")).read_text(encoding="utf-8")
    assert '<p class="missing">Skipped: ' in page
    assert page.count("can’t be read") > 3, "suspicious pairs are listed by their captions"
    folder = shutil.copytree(runs["rde"], tmp_path / "run")
    for file in ("best.pth", "last.pth", "test_metrics.json"):
        (folder / file).unlink()
    shutil.rmtree(folder / "epochs")
    (tmp_path / "nothing").mkdir()
    page = report.report(folder, str(tmp_path / "nothing")).read_text(encoding="utf-8")
    assert "holds no best.pth or last.pth" in page
    assert "Not tested yet." in page
    assert page.count("no division of the pairs is recorded (--division ccd)") == 2
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no epoch in metrics.jsonl"):
        report.main([str(folder)])


@pytest.mark.slow
def test_the_readmes_picture_is_small_and_not_blank(runs, browser, tmp_path):  # noqa: F811
    page = browser.new_page(viewport=readme_pictures.LAPTOP)
    readme_pictures.picture_of_the_report(page, runs["rde"] / "report.html", tmp_path / "report.png")
    page.close()
    for file in (tmp_path / "report.png", readme_pictures.DOCS / "report.png"):
        with Image.open(file) as picture:
            assert picture.width == readme_pictures.WIDTH
            assert np.asarray(picture.convert("L")).std() > 10
        assert file.stat().st_size < 150_000


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("no data"), "no data"),
        (OSError(28, "full"), "[Errno 28] full"),
        (KeyError(), "Key"),
    ],
)
def test_a_failed_report_does_not_fail_the_training(monkeypatch, capsys, error, line):
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(train_and_report.train, "main", lambda _: SimpleNamespace(path=Path("run")))
    monkeypatch.setattr(train_and_report, "report", fails)
    train_and_report.main([])
    assert capsys.readouterr().out.startswith(f"no report: {line}")
    monkeypatch.setattr(train_and_report.train, "main", lambda _: None)  # of --test
    train_and_report.main([])
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(UserError, match=f"^{folder} is not a run folder: it holds no configs.yaml$"):
            report.main([str(folder)])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("configs.yaml", "noisy_rate: high\n", "configs.yaml: noisy_rate: expected float, found 'high'"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "lr": 1, "loss": 1, "val": 5}\n',
            "epoch 1: no number R1 in val",
        ),
        ("metrics.jsonl", '{"epoch": 1, "lr": 1, "loss": 1, "val": {"BGE": {"R1": null}}}', "no number R1 in val"),
        ("metrics.jsonl", '{"epoch": 1, "lr"', "has no epoch in metrics.jsonl"),
        ("test_metrics.json", '{"best.pth": {"BGE"', "test_metrics.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    (tmp_path / "configs.yaml").write_text("noisy_rate: 0.5\n", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "lr": 1, "loss": 1}\n', encoding="utf-8")
    assert read_run(tmp_path).records
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        report.main([str(tmp_path)])


@pytest.mark.parametrize("content", ['{"val": 3}', '{"val": {"BGE": {"R1": "x"}}}', '{"val": {"BGE"', "[1]"])
def test_damaged_start_metrics_are_ignored(tmp_path, content):
    (tmp_path / "start_metrics.json").write_text('{"val": {"BGE": {"R1": 5}}}', encoding="utf-8")
    assert RunFolder(tmp_path).start_metrics() == {"val": {"BGE": {"R1": 5.0}}}
    (tmp_path / "start_metrics.json").write_text(content, encoding="utf-8")
    assert RunFolder(tmp_path).start_metrics() == {}


def test_long_error_messages_are_truncated_in_a_report():
    def lacks(_: object) -> str:
        raise DataError(f"a.pth can't be read: {brief(ValueError('x' * 200))}")

    assert brief(ValueError("short")) == "short"
    section = report_page._section(None, "Results", lacks)  # pyright: ignore[reportArgumentType]
    assert f"read: {'x' * 119}…</p>" in section


def test_an_unwritable_report_file_is_detected_before_the_work(monkeypatch, tmp_path):
    def works(_subject: object, _sections: object, file: Path) -> None:
        assert file.read_text(encoding="utf-8") == "older"
        raise DataError("worked")

    monkeypatch.setattr(report_page.Subject, "read", lambda *_: None)
    monkeypatch.setattr(report_page, "write_report", works)
    for out in (tmp_path, tmp_path / "none/a.html", Path(__file__) / "a.html"):
        with pytest.raises(OSError, match=str(out)) as caught:
            report.report(tmp_path, out=str(out))
        assert caught.value.filename == str(out)
    (tmp_path / "report.html").write_text("older", encoding="utf-8")
    with pytest.raises(DataError, match="worked"):
        report.report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_leads_and_ranks_equal_the_oracle():
    rng = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(n, 8, generator=rng), dim=1) for n in (12, 20))
    image_pids, caption_pids = np.arange(12) % 4, np.arange(20) % 4
    answers = Answers.of(
        Encoded({"BGE": image}, {"BGE": text}), SimpleNamespace(image_pids=image_pids, caption_pids=caption_pids)
    )
    for caption, row in enumerate((text @ image.T).tolist()):
        right = [value for value, pid in zip(row, image_pids, strict=True) if pid == caption_pids[caption]]
        wrong = [value for value, pid in zip(row, image_pids, strict=True) if pid != caption_pids[caption]]
        assert answers.lead[caption] == pytest.approx(max(right) - max(wrong), abs=1e-6)
        assert answers.rank[caption] == sorted(row, reverse=True).index(max(right)) + 1


def test_one_caption_per_person_is_shown():
    assert one_per_person([4, 0, 1, 5, 2, 3], np.array([7, 7, 8, 9, 7, 8])) == [4, 5, 3]


def test_text_is_escaped_for_html():
    assert escaped('<b title="x">\ud800 & é') == "&lt;b title=&quot;x&quot;&gt;? &amp; é"
