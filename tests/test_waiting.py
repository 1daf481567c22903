"""Slow steps are announced, and a run warns if its threads wait for a core."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from processor.wording import busy_host
from tools.visualize import __main__ as visualize
from utils import log, threads
from utils.errors import DataError


def test_the_time_threads_wait_for_a_core_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_TASKS", tmp_path)

    def count(task: str, ran: float, waited: float) -> None:
        (tmp_path / task).mkdir(exist_ok=True)
        (tmp_path / task / "schedstat").write_text(f"{int(ran * 1e9)} {int(waited * 1e9)} 7\n")

    assert threads.core_time() == (0, 0)
    count("1", 5, 1)
    count("2", 5, 0)
    before = threads.core_time()
    assert before == pytest.approx((10, 1))
    assert threads.core_time().waited_since(before) == 0
    count("1", 6, 4)
    count("2", 5, 0)
    (tmp_path / "3").mkdir()  # a thread that has ended meanwhile
    assert threads.core_time().waited_since(before) == pytest.approx(3 / 4)


def test_a_jobs_share_of_the_cores_is_used(monkeypatch):
    assert threads.usable_cores() >= 1
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert threads.usable_cores() == 2
    monkeypatch.delattr("os.sched_getaffinity")
    assert threads.usable_cores() == 64


def test_a_busy_host_is_named():
    assert busy_host(0.1) == ""
    assert busy_host(0.75).startswith("threads waited for a core 75% of the time: other programs")


def test_each_figure_is_named_before_it_is_drawn(tmp_path, capsys):
    said = []

    def figure(file: Path) -> None:
        said.append(capsys.readouterr().out)
        if file.name == "b":
            raise DataError("no data")

    drawn, skipped = visualize.draw({"a": figure, "b": figure}, tmp_path)
    assert said == ["drawing a …\n", "drawing b …\n"]
    assert ([file.name for file in drawn], dict(skipped)) == (["a"], {"no data": ["b"]})


@pytest.mark.parametrize("terminal", [True, False])
def test_status_lines_are_printed_only_on_terminals(monkeypatch, terminal):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    log.status("reading X")
    assert stream.getvalue() == ("reading X …\n" if terminal else "")


@pytest.mark.parametrize("command", ["audit", "check_data", "reproduce", "runs", "search", "visualize"])
def test_help_does_not_import_torch(command):
    root = Path(__file__).parents[1]
    program = (
        "import runpy, sys\n"
        "try: runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", program, f"tools.{command}", "--help"]
    answer = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True).stdout
    assert answer.startswith("usage: ")
    assert answer.endswith("False\n")
