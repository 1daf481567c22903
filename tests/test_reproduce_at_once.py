"""`python -m tools.reproduce` in parallel, and its dry run."""

from __future__ import annotations

import shlex
import threading
import time
from pathlib import Path

from tools.reproduce import __main__ as reproduce
from tools.reproduce import runs, train_rows


def test_a_dry_run_prints_each_command_once_and_in_order(tmp_path, capsys):
    reproduce.main(
        ["--table", "cross-domain", "--seeds", "2", "--root_dir", "/data", "--output_dir", str(tmp_path), "--dry-run"]
    )
    commands = [line.split(": python ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == len(set(commands))
    trainings = [command for command in commands if command.startswith("train.py")]
    assert len(trainings) == 3 * 2, "a data set's run is tested on both others"
    assert len(commands) == 3 * 2 + 6 * 2
    assert "RUN_DIR" not in "".join(commands)
    folders = {shlex.split(command)[shlex.split(command).index("--output_dir") + 1] for command in commands}
    assert len(folders) == 6, "a test finds its run where training wrote it"
    first = {folder: next(command for command in commands if folder in command) for folder in folders}
    assert all(command.startswith("train.py") for command in first.values()), "a run is trained before it is tested"
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_what_is_trained(tmp_path, monkeypatch, capsys):
    """Not the starting weights, which are read from the same run."""
    command = ["--table", "synthpedes", "--row", "start+rde", "--seeds", "1", "--output_dir", str(tmp_path)]
    reproduce.main([*command, "--dry-run"])
    assert capsys.readouterr().out.startswith("RDE: TAL with CCD, SynthPEDES, 50% noise, seed 1: python train.py")
    monkeypatch.setattr(runs.Run, "missing", lambda _: [])
    reproduce.main([*command, "--dry-run"])
    assert capsys.readouterr().out == "nothing is missing\n"


def test_trainings_get_the_plugin(tmp_path, capsys):
    plugin = tmp_path / "given_to_reproduce.py"
    plugin.write_text("")
    given = ["--table", "2", "--seeds", "1", "--root_dir", "/data", "--output_dir", str(tmp_path), "--dry-run"]
    reproduce.main([*given, "--plugin", str(plugin), "--", "--batch_size", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(f"--plugin {plugin} --batch_size 8" in line for line in lines)


def test_concurrent_commands_share_the_runs(tmp_path, monkeypatch, capsys):
    """Four processes, four seeds: each is trained once, the last to finish sees all, and one reports at a time."""
    started, all_started, reports = [], threading.Barrier(4), []
    reporting, at_once = threading.Lock(), []

    def train(run: runs.Run, _: list[str]) -> None:
        started.append(run.seed)
        all_started.wait(timeout=60)
        folder = run.folder / "RSTPReid" / "20260101_000000_RDE_TAL"
        folder.mkdir(parents=True)
        (folder / "done").touch()

    def finished(run: runs.Run) -> Path | None:
        return next(iter(run.folder.glob("*/*/done")), None)

    def summarise(row_runs: list[runs.Run], **_: object) -> dict:
        reports.append(sum(bool(finished(run)) for run in row_runs))
        return {"results": {}}

    def write_report(*_: object) -> str:
        at_once.append(not reporting.acquire(blocking=False))
        time.sleep(0.05)
        if not at_once[-1]:
            reporting.release()
        return ""

    monkeypatch.setattr(runs.Run, "_execute", train)
    monkeypatch.setattr(runs.Run, "finished", finished)
    monkeypatch.setattr(train_rows, "summarise", summarise)
    monkeypatch.setattr(train_rows, "write_report", write_report)
    monkeypatch.setattr(train_rows, "draw_curves", lambda *_: False)
    command = ["--table", "1", "--row", "rde", "--dataset", "RSTPReid", "--noise", "0.5", "--seeds", "4"]
    command += ["--output_dir", str(tmp_path), "--root_dir", "/data"]
    workers = [threading.Thread(target=reproduce.main, args=(command,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(started) == [1, 2, 3, 4]
    assert max(reports) == 4
    assert at_once == [False] * 4
    assert "another process is training it" in capsys.readouterr().out
