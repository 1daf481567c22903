"""Write a run's report as one HTML page: results, curves, losses, best and worst retrievals, most suspicious pairs.

    python -m tools.report RUN_DIR        # writes RUN_DIR/report.html, a single file that opens offline

Sections without their input, such as a checkpoint or the data, are replaced by the reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import printable
from utils.files import require_writable
from utils.log import status
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program

REPORT = "report.html"


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.report", __doc__)
    add_plugin(parser)
    parser.add_argument("run_dir", help="a run folder of train.py, finished or not")
    parser.add_argument("--root_dir", help="folder containing the data set's folder (default: the run's)")
    parser.add_argument("--out", help="file to write (default: RUN_DIR/report.html)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write the page."""
    args = parse(build_parser(), argv)
    folder = Path(args["run_dir"])
    print(printable(f"wrote {report(folder, args['root_dir'], args['out'], args['device'])}"))


def report(folder: Path, root_dir: str | None = None, out: str | None = None, device: str = "auto") -> Path:
    """Write a run's page and return its path.

    Args:
        folder: the run's folder.
        root_dir: folder containing the data; default: the run's.
        out: output file; default: report.html in the run folder.
        device: as `--device`.

    Raises:
        OptionError, DataError: not a run folder, or without a completed epoch, or with damaged files.
        OSError: the file can't be written.
    """
    status("loading PyTorch")
    from tools.report.page import Subject, write_report  # imports torch, only after checking the flags
    from tools.report.sections import SECTIONS
    from utils.devices import choose_device

    file = Path(out) if out else folder / REPORT
    subject = Subject.read(folder, choose_device(device), root_dir)
    require_writable(file)
    write_report(subject, SECTIONS, file)
    return file


if __name__ == "__main__":
    run_program(main)
