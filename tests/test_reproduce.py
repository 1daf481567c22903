"""`python -m tools.reproduce`: the paper's rows, their configurations, running and reporting them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

import test as evaluation_root
import train as training_root
from datasets import synthpedes
from tests import datasets_on_disk
from tests.test_training import SMALL
from tools.audit import __main__ as audit
from tools.reproduce import __main__ as reproduce
from tools.reproduce import paper, runs
from tools.reproduce.report import CHOICES
from tools.reproduce.tables import CONFIGS, TABLES
from utils.errors import UserError
from utils.options import read_config
from utils.run_folder import RunFolder, lock_folder, read_records

pytestmark = pytest.mark.usefixtures("small_figures")

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(R1|R5|R10|mAP|mINP) (\d+\.\d\d)")
HEADED = sorted(CONFIGS.glob("*/*.yaml"))
ROWS = [(table, row) for table, content in TABLES.items() for row in content.rows]


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Run the command's programs in this process: a new one would take seconds to import torch."""

    def run(command: Sequence[str], stdout: TextIO, **_: object) -> SimpleNamespace:
        program = {"train.py": training_root, "test.py": evaluation_root}[Path(command[1]).name]
        with contextlib.redirect_stdout(stdout):
            try:
                program.main(command[2:])
            except UserError as error:
                print(f"error: {error}")
                return SimpleNamespace(returncode=2)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(run=run))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Arguments for small runs."""
    root = tmp_path_factory.mktemp("data")
    annotations = datasets_on_disk.write(root, "RSTPReid")
    more = [
        "--dataset_name",
        str(annotations),
        *SMALL,
        "--img_size",
        "48",
        "16",
        "--num_epoch",
        "1",
        "--warmup_epochs",
        "0",
        "--decl_warmup",
        "0",
    ]
    return ["--root_dir", str(root), "--seeds", "1", "--dataset", "SynthPEDES", "--", *more]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("table", "more"),
    [
        ("2", []),
        ("7", []),
        ("1", ["--noise", "0.5"]),
        ("figure4-tau", ["--row", "0.01"]),
        ("figure6", ["--row", "0.5"]),
        ("cross-domain", []),
    ],
)
def test_every_kind_of_row_is_run_and_reported(tmp_path_factory, small, monkeypatch, capsys, table, more):
    monkeypatch.setattr(runs, "FAR", replace(runs.FAR, identities={"test": 3}, images_per_identity={"test": 2}))
    output_dir = tmp_path_factory.getbasetemp() / "reproduce"  # shared: rows of several tables use the same run
    command = ["--table", table, *more, "--output_dir", str(output_dir), *small]
    reproduce.main(command)
    (report,) = output_dir.glob(f"table_{table}_*.json")
    rows = reproduce.select(table, more[1] if "--row" in more else None, "SynthPEDES", None)
    summaries = json.loads(report.read_text())["rows"]
    noise = float(more[1]) if "--noise" in more else None
    assert [(s["name"], s["noise"]) for s in summaries] == [
        (row.name, row.noise) for row in rows if noise in (None, row.noise)
    ]
    for summary in summaries:
        row = next(row for row in rows if (row.name, row.noise) == (summary["name"], summary["noise"]))
        (run_dir,) = (path.parent for path in (output_dir / row.slug / "seed1").glob("*/*/configs.yaml"))
        suffix = "_SynthPEDES-far" if row.target else ""
        tested = json.loads((run_dir / f"test_metrics{suffix}.json").read_text())
        results = summary["results"]
        assert results["last"]["R1"]["values"] == [tested["last.pth"][row.similarity]["R1"]]
        assert results["best by validation"]["mAP"]["mean"] == tested["best.pth"][row.similarity]["mAP"]
        if not row.target:
            assert (
                results["best by test"]["R1"]["mean"]
                == read_records(run_dir / "metrics.jsonl")[0]["test"][row.similarity]["R1"]
            )
        assert f"| {row.title} " in report.with_suffix(".md").read_text()
    assert report.with_suffix(".png").is_file() == (table != "cross-domain"), "R1 per epoch of the run's own data set"
    capsys.readouterr()
    reproduce.main(command)
    assert "train.py" not in capsys.readouterr().out, "finished runs are not repeated"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_row_and_its_audit_run_on_synthpedes(tmp_path, monkeypatch, capsys):
    """One epoch on a few persons of it, rendering included; its audit finds the wrong captions."""
    sizes = {"train": 60, "val": 5, "test": 20}
    few = replace(synthpedes.RECIPE, identities=sizes, images_per_identity=dict.fromkeys(sizes, 2))
    monkeypatch.setattr(synthpedes, "RECIPE", few)
    command = ["--table", "2", "--row", "bge", "--dataset", "SynthPEDES", "--seeds", "1", "--output_dir", str(tmp_path)]
    reproduce.main([*command, "--root_dir", str(tmp_path / "data"), "--", "--num_epoch", "1", "--warmup_epochs", "0"])
    (summary,) = json.loads((tmp_path / "table_2_bge_SynthPEDES_1_seeds.json").read_text())["rows"]
    assert summary["dataset"] == "SynthPEDES"
    assert summary["results"]["last"]["R1"]["mean"] > 15, "by chance 5 ± 2.4"
    assert "| TAL, BGE alone in inference | SynthPEDES | 50% " in capsys.readouterr().out
    (config,) = tmp_path.glob("**/seed1/*/*/configs.yaml")
    audit.main([str(config.parent), "--top", "1"])
    judgement = json.loads((config.parent / "audit/audit.json").read_text())
    # A random order's average precision has spread 1 / (2·√240) = 0.03 around the share of wrong captions.
    assert judgement["average_precision"]["BGE"] > judgement["chance"] + 0.1


def test_the_report_compares_means_over_seeds_with_the_paper(tmp_path, capsys):
    """From run folders with known numbers: choices, means, spread, difference."""
    r1 = {1: (70.0, 72.0), 2: (74.0, 73.0)}  # best.pth and last.pth
    for seed, values in r1.items():
        run_dir = tmp_path / "main/CUHK-PEDES_0.2" / f"seed{seed}" / "CUHK-PEDES" / "20260101_000000_RDE_TAL"
        run_dir.mkdir(parents=True)
        config = f"_base_: {CONFIGS}/main/CUHK-PEDES_0.2.yaml\nseed: {seed}\nrecord_test: true\n"
        config += "root_dir: /nowhere\nnum_epoch: 60\nprecision: fp32\n"
        (run_dir / "configs.yaml").write_text(config)
        rows = [dict.fromkeys(paper.METRICS, value) for value in values]
        tested = {name: {"BGE+TSE": row} for name, row in zip(("best.pth", "last.pth"), rows, strict=True)}
        (run_dir / "test_metrics.json").write_text(json.dumps(tested))
        epochs = [
            {"epoch": 58 + n, "test": {"BGE+TSE": dict.fromkeys(paper.METRICS, seed + v)}}
            for n, v in ((1, 80), (2, 60))
        ]
        (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)))
    command = ["--table", "1", "--row", "rde", "--dataset", "CUHK-PEDES", "--noise", "0.2", "--seeds", "2"]
    reproduce.main([*command, "--output_dir", str(tmp_path), "--root_dir", "/nowhere"])
    (summary,) = json.loads((tmp_path / "table_1_rde_CUHK-PEDES_0.2_2_seeds.json").read_text())["rows"]
    for choice, values in {"best by validation": (70, 74), "last": (72, 73), "best by test": (81, 82)}.items():
        found = summary["results"][choice]["R1"]
        assert found["mean"] == statistics.mean(values)
        assert found["spread"] == pytest.approx(statistics.stdev(values))
        assert found["difference"] == pytest.approx(found["mean"] - {"best": 74.53, "last": 74.46}[CHOICES[choice]])
    assert "72.00 ± 2.83 (-2.53)" in capsys.readouterr().out


def test_the_rows_cover_all_of_the_papers_numbers():
    printed = json.loads((Path(paper.__file__).with_name("paper_numbers.json")).read_text())
    ours = [row for _, row in ROWS if row.paper]
    r1 = sorted(numbers["R1"] for row in {id(row): row for row in ours}.values() for numbers in row.paper.values())
    expected = [row["R1"] for row in printed["main"] if row["method"] in paper.OURS]
    expected += [row["R1"] for part in ("ablation", "tse") for row in printed[part]]
    expected += [*printed["figure3"]["R1"].values(), *(v for k, v in printed["cross_domain"].items() if "->" in k)]
    assert r1 == sorted(expected)
    text = reproduce.listing()
    assert text.count("another system, not implemented here") == len(
        {(r["dataset"], r["noise"], r["method"]) for r in printed["main"] if r["method"] not in paper.OURS}
    )
    for line in text.splitlines():
        if (start := line.find("python -m tools.reproduce")) > 0:
            command = shlex.split(line[start:].rstrip(" |"))[3:]
            args = reproduce.parse(reproduce.build_parser(), command)
            assert len(reproduce.select(args["table"], args["row"], args["dataset"], args["noise"])) == 1, line


def test_several_rows_are_selected_by_name():
    rows = reproduce.select("synthpedes", "sdm+rde", None, None)
    assert [row.name for row in rows] == ["rde", "sdm"]


@pytest.mark.parametrize("file", HEADED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_configuration_is_headed_by_its_command_and_the_papers_numbers(file):
    text = file.read_text(encoding="utf-8")
    (command,) = re.findall(r"python -m tools.reproduce (.*) --root_dir /path/to/data", text)
    args = reproduce.parse(reproduce.build_parser(), command.split())
    (row,) = reproduce.select(args["table"], args["row"], args["dataset"], args["noise"])
    assert CONFIGS / f"{row.config}.yaml" == file
    listed = [line for line in text.splitlines() if line.startswith("# The paper")]
    assert len(listed) == len(row.paper)
    for line, numbers in zip(listed, row.paper.values(), strict=True):
        assert {name: float(value) for name, value in NUMBER.findall(line)} == numbers
    assert read_config(file)["precision"] == "published", "it is based on configs/base.yaml"


def test_synthpedes_rows_change_the_same_flags_as_the_papers():
    for _, row in ROWS:
        if row.dataset == "SynthPEDES":
            continue
        given = runs.parse("", row.on_synthpedes().flags)
        assert given.pop("config") == str(CONFIGS / "SynthPEDES.yaml")
        assert given.pop("precision", "") == row.precision
        own, base = (read_config(CONFIGS / f"{name}.yaml") for name in (row.config, "base"))
        differing = {name: value for name, value in own.items() if value != base.get(name)}
        del differing["dataset_name"]
        assert given == differing | {"noisy_rate": row.noise}


def test_runs_with_other_flags_are_refused(tmp_path):
    run_dir = tmp_path / "SynthPEDES/ablation/no-ccd_0.5/seed1/SynthPEDES/20260101_000000_RDE_TAL"
    run_dir.mkdir(parents=True)
    (run_dir / "configs.yaml").write_text("lr: 0.5\n", encoding="utf-8")
    report = tmp_path / "table_synthpedes_sdm+no-ccd_1_seeds.md"
    report.write_text("of the runs with those flags")
    with pytest.raises(UserError, match=r"was run with .*: delete it or choose another --output_dir"):
        reproduce.main(["--table", "synthpedes", "--row", "sdm+no-ccd", "--seeds", "1", "--output_dir", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"SynthPEDES", report.name}, "nothing else was trained"
    assert report.read_text() == "of the runs with those flags"


def test_a_far_data_set_of_another_recipe_is_refused(tmp_path, monkeypatch):
    recipe = replace(runs.FAR, identities={"test": 2}, images_per_identity={"test": 1})
    monkeypatch.setattr(runs, "FAR", recipe)
    for _ in range(2):
        runs._write_far(tmp_path / "SynthPEDES-far")
        assert (tmp_path / "SynthPEDES-far/SynthPEDES-far.json").is_file()
    monkeypatch.setattr(runs, "FAR", replace(recipe, seed=1))
    with pytest.raises(FileExistsError, match="is not this version's SynthPEDES-far: move or delete it"):
        runs._write_far(tmp_path / "SynthPEDES-far")


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_run_that_another_process_trains_is_skipped(tmp_path, small, capsys):
    command = ["--table", "figure6", "--row", "0.1", "--output_dir", str(tmp_path), *small]
    (row,) = reproduce.select("figure6", "0.1", "SynthPEDES", None)
    run_dir = tmp_path / row.slug / "seed1/RSTPReid/20260101_000000_RDE_TAL"
    run_dir.mkdir(parents=True)
    more = small[small.index("--") + 1 :]
    run = runs.Run(row, 1, tmp_path / row.slug / "seed1", small[1], tuple(more))
    options = runs.resolve(runs.parse("", run.arguments))
    (run_dir / "configs.yaml").write_text(json.dumps(options))
    (run_dir / "last.pth").touch()
    for held in (RunFolder(run_dir).lock(), lock_folder(tmp_path / row.slug / "seed1", "")):
        with held:
            reproduce.main(command)
        told = capsys.readouterr().out
        assert "another process is training it" in told
        assert "no finished run" in told


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_runs_that_fail_are_reported_and_the_others_run(tmp_path, small, capsys):
    """A file blocks TRL's folder."""
    (tmp_path / "SynthPEDES/figure3").mkdir(parents=True)
    (tmp_path / "SynthPEDES/figure3/trl").touch()
    with pytest.raises(UserError, match=r"1 of the runs failed"):
        reproduce.main(["--table", "figure3", "--output_dir", str(tmp_path), *small])
    printed = capsys.readouterr().out
    assert "| TRL " in printed
    assert printed.count("no finished run") == 1
    assert "With additional flags, so not in the paper's setting: --dataset_name" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_killed_run_is_resumed_and_interim_tests_do_not_count(tmp_path, small, capsys):
    """Two seeds; the first is killed in its second epoch, and tested by hand before it is resumed."""
    more = small[small.index("--") + 1 :]
    more += ["--num_epoch", "6"]  # it must not end before it is killed
    command = ["--table", "figure6", "--row", "0.5", "--seeds", "2", "--dataset", "SynthPEDES", "--output_dir"]
    command += [str(tmp_path), "--root_dir", small[1], "--", *more]
    process = subprocess.Popen([sys.executable, "-m", "tools.reproduce", *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    seed1 = tmp_path / "SynthPEDES/sweeps/select_ratio_0.5/seed1"
    deadline = time.monotonic() + 240
    while not (found := list(seed1.glob("*/*/last.pth"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="another process is training this run"):  # its child continues
        runs.Run(reproduce.select("figure6", "0.5", "SynthPEDES", None)[0], 1, seed1, small[1], tuple(more)).train()
    (run_dir,) = (path.parent for path in found)
    os.kill(int(training_process(seed1)), signal.SIGKILL)
    while RunFolder(run_dir).is_locked():  # the kill takes effect later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    epochs = len(read_records(run_dir / "metrics.jsonl"))
    assert epochs < 6
    evaluation_root.main([str(run_dir)])
    reproduce.main([*command, "--log_period", "7"])
    assert f"--resume {run_dir}" in capsys.readouterr().out
    (summary,) = json.loads((tmp_path / "table_figure6_0.5_SynthPEDES_2_seeds.json").read_text())["rows"]
    assert summary["seeds"] == [1, 2]
    assert [record["epoch"] for record in read_records(run_dir / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (
        summary["results"]["last"]["R1"]["values"][0]
        == read_records(run_dir / "metrics.jsonl")[-1]["test"]["BGE+TSE"]["R1"]
    )
    assert summary["results"]["last"]["R1"]["spread"] is not None
    (run_dir / "test_metrics.json").write_text("{}")
    with pytest.raises(UserError, match="is incomplete: delete it and test again"):
        reproduce.main([*command, "--log_period", "7"])


def training_process(folder: Path) -> str:
    """The process that is training in a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(folder).encode() in words and any(word.endswith(b"train.py") for word in words):
                return process.name
    raise AssertionError(f"no process trains in {folder}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "give --table: choose from 1, 2"),
        (["--table", "x"], "--table x: choose from 1, 2"),
        (["--table", "2", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--table", "2", "--row", "x"], "--row x: table 2 has tal, trl"),
        (["--table", "2", "--row", "tal+x"], "--row x: table 2 has tal, trl"),
        (["--table", "2", "--row", ""], "--row : table 2 has tal, trl"),
        (["--table", "1", "--dataset", "MARS"], "--dataset MARS: table 1 has CUHK-PEDES, ICFG-PEDES, RSTPReid"),
        (["--table", "1", "--noise", "0.3"], "--noise 0.3: table 1 has 0.0, 0.2"),
        (["--table", "2", "--", "--seed", "3"], "--seed after --: set by the row or by this command"),
        (["--table", "2", "--", "--noisy_rate", "0.2"], "--noisy_rate after --: set by the row or by this command"),
        (["--table", "synthpedes", "--", "--division", "ccd"], "--division after --: set by the row no-ccd"),
        (["--table", "2", "--root_dir", ""], "--root_dir: must not be empty"),
        (["--table", "2", "--output_dir", ""], "--output_dir: must not be empty"),
        (["--table", "2", "--dry-run", "--", "--bogus", "3"], "unknown argument --bogus"),
    ],
)
def test_user_errors_are_one_line(command, message):
    with pytest.raises(UserError, match=message):
        reproduce.main(command)
