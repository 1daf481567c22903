"""The table of runs."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import statistics
from pathlib import Path

import pytest

from tools.runs import __main__ as command
from utils.errors import OptionError, UserError
from utils.options import defaults
from utils.run_folder import RunFolder


def write(folder: Path, r1: list[float], tested: float | None = None, **flags: object) -> Path:
    """A run's folder: validation R1 by epoch, and R1 on the test split."""
    folder.mkdir(parents=True)
    RunFolder(folder).write_config({**defaults(), "num_epoch": 3, **flags}, {})
    rows = [
        {"BGE": {"R1": 99.0, "mAP": 1.0, "rSum": 2.0}, "BGE+TSE": {"R1": value, "mAP": 1.0, "rSum": 2.0}}
        for value in r1
    ]
    records = [{"epoch": n, "seconds": 10, "ccd": {"seconds": 2.5}, "val": row} for n, row in enumerate(rows, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if tested is not None:
        metrics = {"BGE+TSE": {"R1": tested, "mAP": 40.0, "rSum": 100.0}}
        (folder / "test_metrics.json").write_text(json.dumps({"best.pth": {"epoch": 2} | metrics}))
    return folder


@pytest.fixture
def logs(tmp_path) -> Path:
    done = {"margin": 0.2, "root_dir": "/elsewhere"}
    write(tmp_path / "X/20260101_000000_a", [10, 30, 20], 31.0, seed=1, **done)
    write(tmp_path / "X/20260102_000000_b", [10, 20, 40], 35.0, seed=2, **done)
    write(
        tmp_path / "deep/er/X/20260103_000000_c",
        [50],
        seed=1,
        margin=0.1,
        loss_names="TAL+sr0.3_tau0.015_margin0.1_n0.2",
    )
    export = tmp_path / "X/20260101_000000_a/export"
    export.mkdir()
    (export / "configs.yaml").write_text("name: x\n")
    (export / "model.safetensors").touch()
    return tmp_path


def rows(capsys, *arguments: object) -> list[dict[str, str]]:
    command.main([*map(str, arguments), "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_run_is_a_row_of_differing_flags_and_results(logs, capsys):
    first, _, third = rows(capsys, logs)
    assert first == {
        "run": str(logs / "X/20260101_000000_a"), "margin": "0.2", "seed": "1", "state": "done", "epochs": "3/3",
        "best": "2", "val_R1": "30", "val_mAP": "1.00", "val_rSum": "2.00", "test_R1": "31.00", "test_mAP": "40.00",
        "test_rSum": "100.00", "seconds": "38",
    }  # fmt: skip
    assert (third["state"], third["epochs"], third["test_R1"]) == ("stopped", "1/3", "")
    with RunFolder(logs / "deep/er/X/20260103_000000_c").lock():
        assert rows(capsys, logs)[2]["state"] == "running"


@pytest.mark.parametrize(
    ("fails", "number"), [("fcntl.flock", errno.ENOLCK), ("os.open", errno.EROFS), ("os.open", errno.EACCES)]
)
def test_a_run_folder_that_cannot_be_locked_is_listed(logs, capsys, monkeypatch, number, fails):
    def refuse(path: object, *_: object) -> int:
        if fails == "os.open" and not str(path).endswith(".lock"):
            return opened(path, *_)
        raise OSError(number, os.strerror(number))

    run, opened = RunFolder(logs / "deep/er/X/20260103_000000_c"), os.open
    (run.path / ".lock").touch()
    monkeypatch.setattr(fails, refuse)
    assert rows(capsys, logs)[2]["state"] == "stopped"
    with pytest.raises(OptionError, match=rf"{run} can't be locked: {os.strerror(number)}$"):
        run.lock()


def test_metrics_of_a_run_selected_on_the_test_split_are_not_called_val(tmp_path, capsys):
    run = RunFolder(write(tmp_path / "a", [10, 30, 20]))
    run.write_config(run.flags(), {"selected_on": "test"})
    (row,) = rows(capsys, tmp_path)
    assert (row["best"], row["val_R1"], row["test_R1"]) == ("2", "", "30")


def test_rows_are_sorted_filtered_and_grouped(logs, capsys):
    assert [row["test_R1"] for row in rows(capsys, logs, "--sort", "test_R1")] == ["35.00", "31.00", ""]
    assert [row["margin"] for row in rows(capsys, logs, "--where", "state=done", "margin=0.2")] == ["0.2", "0.2"]
    assert [row["margin"] for row in rows(capsys, logs, "--where", "margin=.2", "tau=1.5e-2")] == ["0.2", "0.2"]
    assert [row["margin"] for row in rows(capsys, logs, "--sort", "margin")] == ["0.1", "0.2", "0.2"]
    seeds, other = rows(capsys, logs, "--group")
    assert seeds["runs"] == "2"
    assert seeds["state"] == "2 done"
    assert seeds["test_R1"] == f"33.00 ± {statistics.stdev([31, 35]):.2f}"
    assert "seed" not in seeds
    assert (other["test_R1"], other["val_R1"], other["state"]) == ("", "50.00", "1 stopped")
    assert rows(capsys, logs, "--group", "--sort", "val_R1")[0] == other


def test_data_files_of_the_same_name_are_distinguished(tmp_path, capsys):
    for n, folder in enumerate(("a", "b", "b"), 1):
        write(tmp_path / f"2026010{n}_x", [10.0 * n], seed=n, dataset_name=f"/data/{folder}/mine.json")
    assert [row["dataset_name"] for row in rows(capsys, tmp_path)] == ["a/mine.json", "b/mine.json", "b/mine.json"]
    assert [row["runs"] for row in rows(capsys, tmp_path, "--group")] == ["1", "2"], "other data, another configuration"


def test_text_and_markdown_tables_include_damaged_runs(logs, capsys):
    (logs / "X/20260102_000000_b/test_metrics.json").write_text("[1]")
    command.main([str(logs), "--format", "md"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    reason = f"{logs / 'X/20260102_000000_b/test_metrics.json'} is damaged: delete it and evaluate again\n"
    assert printed.err == reason
    assert lines[0].startswith("| run")
    assert len(lines) == 5
    command.main([str(logs)])
    (damaged,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert "20260102_000000_b" in damaged


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sort", "tow"], "--sort tow: choose from run, margin, seed, state"),
        (["--where", "margin"], "--where margin: must be COLUMN=VALUE"),
        (["--where", "margin=7"], "--where margin=7: margin is 0.2, 0.1"),
    ],
)
def test_user_errors_are_one_line(logs, more, message):
    with pytest.raises(UserError, match=message):
        command.main([str(logs), *more])
    (logs / "none").mkdir()
    with pytest.raises(UserError, match=r"no run in .*none"):
        command.main([str(logs / "none")])
