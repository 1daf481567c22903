"""Train as train.py does, with its flags, then write the run's report: what run_rde.sh and `make train` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import train
from tools.report.__main__ import report
from utils.errors import UserError, brief, printable
from utils.program import run_program
from utils.ranks import launched


def main(argv: Sequence[str]) -> None:
    """Train, and print where the report is; that there is none fails no training."""
    run = train.main(argv)
    if run is not None and not launched():  # of several processes none has the whole run to itself
        print(printable(report_of(run.path)), flush=True)


def report_of(run_dir: Path) -> str:
    """Write a run's report; a line that says where it is, or why there is none."""
    try:
        return f"report: {report(run_dir)}"
    except Exception as error:  # whatever it is, the run is whole
        return f"no report: {error.line if isinstance(error, UserError) else brief(error)}"


if __name__ == "__main__":
    run_program(main)
