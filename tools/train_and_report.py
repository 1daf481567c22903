"""Train like train.py, with the same flags, then write the run's report; used by run_rde.sh and `make train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import train
from tools.report.__main__ import report
from utils.errors import UserError, brief, printable
from utils.program import run_program
from utils.ranks import launched


def main(argv: Sequence[str]) -> None:
    """Train, then print the report's path; a failed report doesn't fail the training."""
    run = train.main(argv)
    if run is not None and not launched():  # processes of a launcher share the run; none writes a report
        print(printable(report_of(run.path)), flush=True)


def report_of(run_dir: Path) -> str:
    """Write a run's report; returns a line with its path, or the reason why there is none."""
    try:
        return f"report: {report(run_dir)}"
    except Exception as error:  # the run itself is complete
        return f"no report: {error.line if isinstance(error, UserError) else brief(error)}"


if __name__ == "__main__":
    run_program(main)
