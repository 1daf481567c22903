"""Figures, audit and export of a trained run, through the real commands."""

from __future__ import annotations

import csv
import errno
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import test as evaluation_root
import train as training_root
from datasets.annotations import read_splits
from datasets.exclusion import read_excluded
from datasets.images import read_image
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer
from model.heads.tse import select_tokens
from processor.history import read_history
from tests import datasets_on_disk, figures
from tests.figures import captured
from tests.galleries import SIZE, write_run
from tests.test_training import arguments
from tools import export, selection
from tools.audit import __main__ as audit
from tools.audit.findings import Findings, confusion
from tools.audit.pairs import Pairs
from tools.audit.table import write_table
from tools.loading import load_run
from tools.visualize import __main__ as visualize
from tools.visualize import curves, densities, pictures
from tools.visualize.runs import labels, read_run
from utils.errors import UserError
from utils.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error::sklearn.exceptions.UndefinedMetricWarning")]

HTML = 'A person in <b>red</b> & "blue" <script>alert(1)</script>, $\\frac{ =1+1'


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    listed = datasets_on_disk.entries("RSTPReid")
    for entry in listed:
        if entry["split"] == "train":
            entry["captions"][0] = f"{HTML} {entry['captions'][0]}"
    datasets_on_disk.write(root, "RSTPReid", listed)
    return root


def train(root: Path, output_dir: Path, *more: str) -> Path:
    with figures.single_pixels():
        training_root.main(arguments(root, output_dir, "--num_epoch", "2", *more))
    (run_dir,) = (output_dir / "RSTPReid").iterdir()
    return run_dir


@pytest.fixture(scope="module")
def run_dir(root, tmp_path_factory) -> Path:
    return train(root, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def others(root, tmp_path_factory) -> list[Path]:
    """Runs with different margins, one of them without CCD."""
    folder = tmp_path_factory.mktemp("others")
    return [train(root, folder / "a", "--margin", "0.3"), train(root, folder / "b", "--division", "all")]


def check_figures(folder: Path, names: Sequence[str]) -> None:
    assert {path.stem for path in folder.glob("*.png")} >= set(names)
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5, "something is drawn"
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_all_figures_of_one_run_are_drawn(run_dir, tmp_path):
    names = ["curves", "r1", "losses_over_epochs", "similarities", "retrieval", "selection"]
    visualize.main([str(run_dir), "--out", str(tmp_path), "--device", "cpu"])
    check_figures(tmp_path, names)
    assert not list(tmp_path.glob("events*")), "no run of TensorBoard's"
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    visualize.main([str(folder), "--device", "cpu"])
    check_figures(folder / "figures", names)
    assert {file.parent for file in folder.rglob("events*")} == {folder}
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert {f"figures/{name}" for name in names} <= set(events.Tags()["images"])
    assert len(list(folder.glob("events*.figures"))) == 1
    visualize.main([str(folder), "--wrong", "2", "--device", "cpu"])
    events.Reload()
    assert {f"figures/{name}" for name in [*names, "retrieval_wrong"]} <= set(events.Tags()["images"])


def test_several_runs_are_compared(run_dir, others, tmp_path):
    visualize.main([str(run_dir), *map(str, others), "--out", str(tmp_path)])
    check_figures(tmp_path, ["r1_of_runs", "similarities", "sweep_margin"])
    assert labels([read_run(folder) for folder in (run_dir, others[0])]) == ["margin 0.1", "margin 0.3"]


def test_three_embeddings_are_drawn_and_audited(run_dir, tmp_path):
    folder, names = copy_of(run_dir, tmp_path / "three"), ["A", "B", "C"]
    for file in (folder / "epochs").iterdir():
        with np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
        votes = {name: arrays[name][[0, 1, 0]] for name in ("loss", "clean_probability", "clean", "components")}
        np.savez(file, **{**arrays, **votes, "names": np.array(names)})
    records = RunFolder(folder).records()
    for record in records:
        metrics = [record["val"][name] for name in ("BGE", "TSE", "BGE", "BGE+TSE")]
        record["val"] = dict(zip([*names, "A+B+C"], metrics, strict=True))
        record |= {"a_loss": record.pop("bge_loss"), "b_loss": record.pop("tse_loss"), "c_loss": 0.0, "id_loss": 1.0}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    run = read_run(folder)
    assert run.fused == "A+B+C"
    assert list(run.losses()) == ["A", "B", "C", "id", "A+B+C+id"]
    visualize.main([str(folder), "--device", "cpu"])
    check_figures(folder / "figures", ["curves", "r1", "losses_over_epochs", "similarities"])
    audit.main([str(folder)])
    assert "C_p_clean" in (folder / "audit/pairs.csv").read_text(encoding="utf-8-sig").splitlines()[0].split(",")
    judgement = json.loads((folder / "audit/audit.json").read_text())
    assert list(judgement["average_precision"]) == [*names, "A+B+C"]
    assert list(judgement["last_epoch"]) == [*names, "all noisy", "any noisy"]


def test_many_runs_are_distinguished(run_dir, tmp_path, drawn):
    flags = [{"exclude": "", "tau": tau} for tau in (0.01, 0.015, 0.02)] + [{"exclude": "/some/where/marks.csv"}]
    flags += [{"select_ratio": ratio, "margin": m} for ratio in (0.1, 0.2, 0.4, 0.5) for m in (0.2, 0.3, 0.4)]
    runs = [read_run(copy_of(run_dir, tmp_path / str(n), **given)) for n, given in enumerate(flags)]
    names = labels(runs)
    assert set(re.split(r",\s", names[0])) == {"exclude none", "select_ratio 0.3", "tau 0.01", "margin 0.1"}
    assert len(set(names)) == len(runs)
    folders = "_a/run", "_b/run", "_b/$\\frac$"
    same = [read_run(copy_of(run_dir, tmp_path / folder)) for folder in folders]
    curves.r1_of_runs(same, tmp_path / "r1_of_same_runs")
    drawn["r1_of_same_runs"].canvas.draw()
    (legend,) = drawn["r1_of_same_runs"].legends or [drawn["r1_of_same_runs"].axes[0].get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == [f"{tmp_path.name}/{folder}" for folder in folders]
    curves.r1_of_runs(runs, tmp_path / "r1_of_runs")
    lines = drawn["r1_of_runs"].axes[0].lines
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker(), line.get_markerfacecolor()) for line in lines]
    assert len(set(looks)) == len(runs)


def test_data_sets_of_the_same_file_name_are_distinguished(run_dir, tmp_path, drawn):
    files = ("/data/old/mine.json", "/data/new/mine.json")
    runs = [read_run(copy_of(run_dir, tmp_path / str(n), dataset_name=file)) for n, file in enumerate(files)]
    assert labels(runs) == ["dataset_name old/mine.json", "dataset_name new/mine.json"]
    curves.r1_of_runs(runs, tmp_path / "r1_of_runs")
    assert [axes.get_title() for axes in drawn["r1_of_runs"].axes] == ["old/mine.json", "new/mine.json"]


@pytest.fixture
def drawn() -> Iterator[dict[str, Figure]]:
    with captured(curves, densities) as found:
        yield found


def copy_of(run_dir: Path, folder: Path, **flags: object) -> Path:
    """A copy of a run without its checkpoints, with changed flags."""
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("*.pth", "figures", "export", "events*"))
    run = RunFolder(folder)
    run.write_config(run.flags() | flags, run.facts())
    return folder


def test_a_sweep_has_a_panel_for_each_group_of_runs(run_dir, tmp_path, drawn):
    flags = [{"loss_names": f"{loss}+sr0.3_tau0.015_margin{m}_n0.5", "margin": m} for loss in "AB" for m in (0.1, 0.3)]
    flags += [{"loss_names": "A", "margin": 0.3, "seed": 2}, {"loss_names": "C", "margin": 0.2}]
    runs = [read_run(copy_of(run_dir, tmp_path / str(n), **given)) for n, given in enumerate(flags)]
    runs[4].r1["BGE+TSE"] = runs[1].r1["BGE+TSE"] + 8
    curves.sweep(runs, "margin", tmp_path / "sweep")
    panels = drawn["sweep"].axes
    assert [axes.get_title() for axes in panels] == ["loss_names A", "loss_names B"], "C has one margin alone"
    assert panels[0].get_ylim() == panels[1].get_ylim()
    means = [axes.containers[2].lines[0].get_xydata() for axes in panels]
    r1 = runs[0].r1["BGE+TSE"]
    assert means[0].tolist() == [[0.1, r1], [0.3, r1 + 4]], "seeds are averaged"
    assert means[1].tolist() == [[0.1, r1], [0.3, r1]]
    assert labels(runs[3:5]) == ["loss_names B, seed 1", "loss_names A, seed 2"]
    with pytest.raises(UserError, match=r"no tested runs differ in τ \(--tau\) alone"):
        curves.sweep(runs, "tau", tmp_path / "sweep")


def test_densities_of_several_runs_share_one_scale(run_dir, tmp_path, drawn):
    short = copy_of(run_dir, tmp_path / "short", margin=0.2)
    (short / "epochs/0002.npz").unlink()
    runs = [read_run(run_dir), read_run(short)]
    densities.similarities_over_epochs(runs, tmp_path / "similarities")
    long, short = drawn["similarities"].axes
    assert (long.get_xlim(), long.get_ylim()) == (short.get_xlim(), short.get_ylim())
    assert [text.get_text() for text in long.get_yticklabels()] == ["1", "2"]
    for mine, other in zip(long.lines[:2], short.lines, strict=True):  # the same epoch is the same line
        assert mine.get_ydata() == pytest.approx(other.get_ydata())


def test_legends_name_the_components_and_curves_show_precision_and_recall(run_dir, tmp_path, drawn):
    run = read_run(run_dir)
    densities.losses_over_epochs(run, tmp_path / "losses")
    names = [text.get_text() for text in drawn["losses"].legends[0].get_texts()]
    assert names == ["truly clean", "truly noisy", "fitted: clean", "fitted: noisy"]
    curves.training_curves(run, tmp_path / "known")
    truth = drawn["known"].axes[3]
    for line in truth.lines:
        assert line.get_ydata() == pytest.approx([100 * record["ccd"][line.get_label()] for record in run.records])
    assert [line.get_label() for line in truth.lines] == ["precision", "recall"]
    curves.training_curves(read_run(copy_of(run_dir, tmp_path / "clean", noisy_rate=0.0)), tmp_path / "unknown")
    assert [text.get_text() for text in drawn["unknown"].axes[3].texts] == ["the true noise is unknown"]


def test_figures_that_cannot_be_drawn_are_skipped_with_the_reason(run_dir, tmp_path, capsys):
    poor = copy_of(run_dir, tmp_path / "poor")
    (poor / "epochs/0001.npz").write_bytes(b"PK")
    for _ in range(2):  # a second time replaces the first
        visualize.main([str(poor), "--device", "cpu"])
        told = [line for line in capsys.readouterr().out.splitlines() if not line.endswith("…")]
        assert len(told) == 3
        assert "skipped losses_over_epochs, similarities: " in told[0]
        assert "0001.npz is damaged" in told[0]
        assert "skipped retrieval, selection: " in told[1]
        assert "holds no best.pth" in told[1]
        check_figures(poor / "figures", ["curves", "r1"])
    visualize.main([str(run_dir), "--root_dir", "/nowhere", "--out", str(tmp_path / "moved"), "--device", "cpu"])
    assert "skipped retrieval, selection: --root_dir /nowhere: no such folder" in capsys.readouterr().out
    check_figures(tmp_path / "moved", ["curves", "r1", "losses_over_epochs", "similarities"])


def test_runs_without_any_drawable_figure_are_an_error(run_dir, tmp_path):
    folders = [copy_of(run_dir, tmp_path / name) for name in "ab"]
    for folder in folders:
        shutil.rmtree(folder / "epochs")
        records = [{k: v for k, v in record.items() if k != "val"} for record in read_run(folder).records]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    with pytest.raises(UserError, match=r"skipped r1_of_runs: no epoch was validated; skipped similarities: no"):
        visualize.main([*map(str, folders), "--out", str(tmp_path / "out")])
    (folders[0] / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, epoch 1: no number lr"):
        visualize.main([str(folders[0])])
    (folders[1] / "test_metrics.json").write_text("[1]")
    for command in (visualize, export):
        with pytest.raises(UserError, match=r"test_metrics.json is damaged"):
            command.main([str(folders[1])])


@pytest.fixture(scope="module")
def audited(run_dir, tmp_path_factory) -> Path:
    """An audit's output folder."""
    folder = tmp_path_factory.mktemp("audited")
    audit.main([str(run_dir), "--out", str(folder)])
    return folder


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.html", "audit.json", "precision_recall.png"])
def test_an_interrupted_audit_keeps_the_older_file(run_dir, audited, tmp_path, monkeypatch, name):
    folder, replace = shutil.copytree(audited, tmp_path / "audit"), Path.replace

    def breaks_off(partial: Path, file: Path) -> None:
        if file.name == name and file.is_file():
            raise OSError(errno.EIO, "Input/output error", str(file))
        replace(partial, file)

    monkeypatch.setattr(Path, "replace", breaks_off)
    older = (folder / name).read_bytes()
    with pytest.raises(OSError, match="Input/output"):
        audit.main([str(run_dir), "--out", str(folder), "--top", "2"])
    assert (folder / name).read_bytes() == older
    assert not list(folder.glob("*.partial"))


def test_a_run_without_division_has_the_other_figures(others, tmp_path):
    visualize.main([str(others[1]), "--out", str(tmp_path), "--device", "cpu"])
    check_figures(tmp_path, ["curves", "r1", "similarities", "retrieval", "selection"])
    with pytest.raises(UserError, match=r"has no votes .*--division all"):
        audit.main([str(others[1])])


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (visualize, ["/nowhere"], "/nowhere is not a run folder: it holds no configs.yaml"),
        (audit, ["/nowhere"], "/nowhere/configs.yaml can't be read"),
        (export, ["/nowhere"], "/nowhere/configs.yaml can't be read"),
        (export, ["RUN", "--checkpoint", "worst.pth"], "no checkpoint .*worst.pth"),
        (export, ["RUN", "--checkpoint", "../best.pth"], r"--checkpoint ../best.pth: must be the name of a file in"),
        (export, ["RUN", "--out", "RUN"], "must not be the run folder itself"),
        (audit, ["RUN", "--top", "0"], "--top 0: must be at least 1"),
        (audit, ["RUN", "--root_dir", "/nowhere"], "--root_dir /nowhere: no such folder"),
        (visualize, ["RUN", "RUN"], "a run folder is listed twice"),
    ],
)
def test_user_errors_are_one_line(run_dir, command, more, message):
    with pytest.raises(UserError, match=message) as caught:
        command.main([str(run_dir) if argument == "RUN" else argument for argument in more])
    assert "\n" not in str(caught.value)


def test_a_run_without_an_epoch_is_reported(run_dir, tmp_path):
    shutil.copy(run_dir / "configs.yaml", tmp_path)
    with pytest.raises(UserError, match=r"has no epoch in metrics.jsonl"):
        visualize.main([str(tmp_path)])
    with pytest.raises(UserError, match="has no votes"):
        audit.main([str(tmp_path)])


def test_chosen_patches_and_words_are_those_of_the_model(root, run_dir):
    model = load_run(run_dir, torch.device("cpu")).model
    split = read_splits("RSTPReid", root, ["test"])["test"]
    image = read_image(split.images[0], SIZE)
    chosen = selection.chosen_patches(model, image)
    assert chosen.shape == model.backbone.grid
    assert chosen.sum() == model.heads["TSE"]["image"].selects
    before = model.encode_image(selection.normalise(torch.from_numpy(image.copy())[None]))
    (row, column) = np.argwhere(chosen)[0]
    attention = model.backbone.encode_image(selection.normalise(torch.from_numpy(image.copy())[None])).attention
    expected = select_tokens(attention[:, 1:], model.heads["TSE"]["image"].selects)[0]
    assert sorted(np.flatnonzero(chosen)) == sorted(expected.tolist())
    assert row * model.backbone.grid[1] + column in expected
    after = model.encode_image(selection.normalise(torch.from_numpy(image.copy())[None]))
    assert torch.equal(before["TSE"], after["TSE"]), "watching changes nothing and has ended"

    caption = "a woman in a red coat and blue jeans " * 5
    words, selected = selection.chosen_words(model, Tokenizer(), caption), model.heads["TSE"]["text"].selects
    assert " ".join(word for word, _ in words) == caption.strip()
    assert sum(weight > 0 for _, weight in words) == selected, "each of these words is one token"
    assert max(weight for _, weight in words) == 1
    ids = torch.from_numpy(Tokenizer()([caption])).long()
    attention = model.backbone.encode_text(ids).attention[0, 1 : len(words) + 1]
    expected = select_tokens(attention[None], selected)[0].tolist()
    assert sorted(expected) == [n for n, (_, weight) in enumerate(words) if weight]
    assert all(weight > 0 for _, weight in selection.chosen_words(model, Tokenizer(), "a red coat"))
    assert selection.chosen_words(model, Tokenizer(), "") == []
    tail = selection.chosen_words(model, Tokenizer(), "red " * 100)[75:]
    assert all(weight == 0 for _, weight in tail), "what is cut off is not chosen"


def test_only_chosen_patches_keep_their_colours(tmp_path):
    run = load_run(write_run(tmp_path / "run"), torch.device("cpu"))
    Image.new("RGB", (64, 192), (250, 10, 10)).save(tmp_path / "red.png")
    picture, faded = selection.overlaid(run.model, SIZE, tmp_path / "red.png")
    chosen = selection.chosen_patches(run.model, read_image(tmp_path / "red.png", SIZE))
    red = (np.asarray(faded) == np.asarray(picture)).all(axis=2)
    scale = picture.size[1] // SIZE[0]
    assert np.array_equal(red[:: 8 * scale, :: 8 * scale], chosen)
    assert red.mean() == pytest.approx(chosen.mean())


def test_the_audit_lists_what_was_flagged(root, run_dir, tmp_path, capsys):
    audit.main([str(run_dir), "--out", str(tmp_path), "--top", "5"])
    told = capsys.readouterr().out
    history = [epoch.pairs for epoch in read_history(run_dir)]
    clean = history[-1].clean
    with (tmp_path / "pairs.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(int(row["pair"]) for row in rows) == np.flatnonzero(~clean.all(axis=0)).tolist()
    assert f"{len(rows)} are flagged as noisy by at least one vote" in told
    split, permutation = read_splits("RSTPReid", root, ["train"])["train"], draw_permutation(24, 0.5)
    doubt = np.mean([1 - epoch.clean_probability for epoch in history], axis=(0, 1))
    assert [float(row["suspicion"]) for row in rows] == pytest.approx(sorted(doubt[~clean.all(axis=0)])[::-1], abs=1e-4)
    for row in rows:
        pair = int(row["pair"])
        assert row["caption"] == split.captions[permutation[pair]]
        assert root / "RSTPReid/imgs" / row["image"] == split.images[split.caption_images[pair]]
        right = split.caption_pids[permutation[pair]] == split.caption_pids[pair]
        assert row["truth"] == ("clean" if right else "noisy")
        assert (row["flagged_by"] == "BGE and TSE") == (not clean[:, pair].any())
        for number, name in enumerate(("BGE", "TSE")):
            assert int(row[f"{name}_times_noisy"]) == sum(not epoch.clean[number, pair] for epoch in history)
            assert float(row[f"{name}_loss"]) == pytest.approx(history[-1].loss[number, pair], abs=1e-4)
    judgement = json.loads((tmp_path / "audit.json").read_text())
    noisy = split.caption_pids[permutation] != split.caption_pids
    assert judgement["chance"] == noisy.mean()
    assert judgement["average_precision"]["BGE+TSE"] == pytest.approx(average_precision_score(noisy, doubt))
    found = judgement["last_epoch"]["all noisy"]
    flagged = ~clean.any(axis=0)
    assert (found["noisy_flagged"], found["clean_flagged"]) == ((noisy & flagged).sum(), (~noisy & flagged).sum())
    for name in ("precision_recall", "most_suspicious"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / f"{name}.pdf").is_file()


def test_the_audits_page_escapes_captions_and_loads_nothing(audited):
    page = (audited / "pairs.html").read_text(encoding="utf-8")
    shown = page.count("<article")
    assert shown == sum(1 for _ in csv.DictReader((audited / "pairs.csv").open(encoding="utf-8-sig", newline="")))
    assert page.count("data:image/jpeg;base64,") == shown
    assert page.count("<script") == 1, "the page's own"
    assert "<b>red" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "it loads nothing"


def test_marked_pairs_of_an_audit_are_excluded(root, run_dir, audited, tmp_path):
    with (audited / "pairs.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows[:3]:
        row["exclude"] = "x"
    with (tmp_path / "mine.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    without = train(root, tmp_path / "logs", "--exclude", str(tmp_path / "mine.csv"))
    excluded = sorted(int(row["pair"]) for row in rows[:3])
    assert read_history(without)[-1].pairs.excluded.tolist() == excluded
    audit.main([str(without), "--out", str(tmp_path / "again")])
    with (tmp_path / "again/pairs.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert not {int(row["pair"]) for row in csv.DictReader(stream)} & set(excluded)
    shutil.copy(tmp_path / "mine.csv", tmp_path / "pairs.csv")
    audit.main([str(run_dir), "--out", str(tmp_path)])
    with (tmp_path / "pairs.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert list(csv.DictReader(stream)) == rows, "a second audit keeps the marks"
    (tmp_path / "pairs.csv").write_text("pair,exclude,image,caption\n99,x,,\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"pairs.csv, line 2: pair '99' is not in"):
        audit.main([str(run_dir), "--out", str(tmp_path)])
    assert "99,x" in (tmp_path / "pairs.csv").read_text(), "a table that can't be read is left as it is"
    more = ["--exclude", str(tmp_path / "mine.csv"), "--noisy_rate", "0", "--noisy_file", ""]
    with pytest.raises(UserError, match="made for other data or noise"):
        train(root, tmp_path / "other", *more)


FORMULAS = ("=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "  =1", "'=1", "say 'red'", 'plain, "red"\nand blue', "")


def test_the_audit_table_holds_no_formula_and_round_trips(run_dir, tmp_path):
    listed = datasets_on_disk.entries("CUHK-PEDES")
    for number, (entry, text) in enumerate(zip(listed, FORMULAS, strict=False)):
        entry["captions"][0] = text
        entry["file_path"] = f"={number}.jpg" if number % 2 else f" {number}/=a {number}.jpg"
    datasets_on_disk.write(tmp_path, "CUHK-PEDES", listed)
    split = read_splits("CUHK-PEDES", tmp_path, ["train"])["train"]
    pairs = Pairs(split, tmp_path / "CUHK-PEDES/imgs", np.arange(24))
    findings = Findings([epoch.pairs for epoch in read_history(run_dir)])
    write_table(findings, pairs, range(24), tmp_path / "pairs.csv")
    with (tmp_path / "pairs.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for pair, row in enumerate(rows):
        entry = listed[pair // 2]
        assert row["person"] == str(entry["id"]), "the annotation file's own number"
        assert row["caption"] in (entry["captions"][pair % 2], f"'{entry['captions'][pair % 2]}")
        assert row["image"] in (entry["file_path"], f"'{entry['file_path']}")
        assert not any(value.lstrip(" ").startswith(tuple("=+-@\t\r")) for value in row.values())
    for apostrophes, delimiter in ((True, ","), (True, ";"), (False, ",")):
        with (tmp_path / "mine.csv").open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
            writer.writeheader()
            for row in rows[:-1]:
                kept = {name: value if apostrophes else value.removeprefix("'") for name, value in row.items()}
                writer.writerow(kept | {"exclude": "x"})
        assert read_excluded(tmp_path / "mine.csv", split, pairs.permutation).tolist() == list(range(23))
    write_table(findings, pairs, [23, 5], tmp_path / "mine.csv")
    with (tmp_path / "mine.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = [(int(row["pair"]), row["exclude"]) for row in csv.DictReader(stream)]
    marked = [(pair, "x") for pair in range(23) if pair != 5]
    assert rows == [(23, ""), (5, "x"), *marked], "suspects first, then marked pairs that are no longer suspect"


def test_other_data_are_not_audited(run_dir, tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid", datasets_on_disk.entries("RSTPReid", persons=5))
    with pytest.raises(UserError, match=r"was trained on 24 pairs, RSTPReid in .* has 20"):
        audit.main([str(run_dir), "--root_dir", str(tmp_path), "--out", str(tmp_path / "out")])


def test_nothing_is_judged_without_ground_truth(run_dir):
    pairs = read_history(run_dir)[-1].pairs
    object.__setattr__(pairs, "truly_clean", np.ones(24, bool))
    assert Findings([pairs]).truth is None
    assert Findings([pairs]).judgement() is None


def test_confusion_counts_every_pair_once():
    truth, flagged = np.array([1, 1, 1, 0, 0, 0, 0], bool), np.array([1, 0, 0, 1, 0, 0, 0], bool)
    counts = {"noisy_flagged": 1, "clean_flagged": 1, "noisy_missed": 2, "clean_passed": 3}
    assert confusion(truth, flagged) == counts | {"precision": 1 / 2, "recall": 1 / 3}
    assert confusion(truth, np.zeros(7, bool))["precision"] == 0


def test_selected_words_are_not_drawn_with_another_tokenizer_than_the_runs(run_dir, tmp_path):
    loaded = load_run(run_dir, torch.device("cpu"))
    loaded.model.backbone.tokenizer = SimpleNamespace()
    with pytest.raises(UserError, match="selected words are shown for CLIP's tokenizer only"):
        pictures.selection_sheet(loaded, tmp_path / "selection")


def test_an_export_reproduces_its_runs_test_results(root, run_dir, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(export, "write_text", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export.main([str(run_dir)])
    export.main([str(run_dir)])
    out = run_dir / "export"
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "configs.yaml", "README.md"}
    assert str(root) not in "".join((out / name).read_text() for name in ("configs.yaml", "README.md"))
    own = json.loads((run_dir / "test_metrics.json").read_text())["best.pth"]
    capsys.readouterr()
    evaluation_root.main([str(out), "--root_dir", str(root), "--device", "cpu"])
    found = json.loads((out / "test_metrics.json").read_text())["model.safetensors"]
    assert found.keys() == own.keys()
    assert {name: found[name]["mAP"] for name in ("BGE", "TSE", "BGE+TSE")} == {
        name: own[name]["mAP"] for name in ("BGE", "TSE", "BGE+TSE")
    }
    card = (out / "README.md").read_text()
    assert f"| BGE+TSE | {own['BGE+TSE']['R1']:.2f} |" in card
    assert "Shuffled captions: 50%" in card
    assert "license: other" in card
    (out / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"checkpoint .*model.safetensors can't be read"):
        evaluation_root.main([str(out), "--root_dir", str(root)])
