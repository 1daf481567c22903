"""A table of runs: differing flags, best epoch, metrics and state.

    python -m tools.runs                                          # all runs in logs
    python -m tools.runs logs/RSTPReid --sort test_R1 --where state=done tau=0.015
    python -m tools.runs --group --format md                      # seeds of one configuration as mean ± spread

Metrics are in percent: those of the best epoch on the validation split (val_…), and of best.pth on the test split
(test_…); a run that selects on the test split has only the latter.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable, TableStyle

from tools.runs.rows import RESULTS, Row, find_runs, group, order, read_rows
from utils.errors import OptionError, printable
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program
from utils.settings import FLAGS

FORMATS = ("text", "csv", "md")


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.runs", __doc__)
    add_plugin(parser)
    parser.add_argument(
        "folders", nargs="*", default=["logs"], metavar="FOLDER", help="folders to search for runs (default: logs)"
    )
    parser.add_argument("--where", nargs="+", default=[], metavar="COLUMN=VALUE", help="only rows with these values")
    parser.add_argument(
        "--sort", metavar="COLUMN", help="results in descending, flags in ascending order (default: by time)"
    )
    parser.add_argument("--group", action="store_true", help="aggregate seeds as mean ± standard deviation")
    parser.add_argument("--format", default="text", choices=FORMATS, help="(default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    args = parse(build_parser(), argv)
    runs = {}
    for folder in map(Path, args["folders"]):
        if not folder.is_dir():
            raise OptionError(f"{folder}: no such folder")
        runs |= {run.path.resolve(): run for run in find_runs(folder)}
    if not runs:
        raise OptionError(f"no run in {', '.join(args['folders'])}")
    requested = [args["sort"], *(condition.partition("=")[0] for condition in args["where"])]
    rows = read_rows(list(runs.values()), [name for name in requested if name in FLAGS])
    for condition in args["where"]:
        rows = _where(rows, condition)
    rows = group(rows) if args["group"] else rows
    if args["sort"]:
        rows = order(rows, _column(rows, args["sort"], "--sort"))
    print(formatted(rows, args["format"]))


def _where(rows: list[Row], condition: str) -> list[Row]:
    name, equals, value = condition.partition("=")
    if not equals:
        raise OptionError(f"--where {condition}: must be COLUMN=VALUE")
    column = _column(rows, name, "--where")
    matching = [row for row in rows if _equal(str(row[column]), value)]
    if not matching:
        values = ", ".join(dict.fromkeys(str(row[column]) for row in rows))
        raise OptionError(f"--where {condition}: {column} is {values}")
    return matching


def _equal(cell: str, value: str) -> bool:
    """Whether two values are the same text or number: 0 equals 0.0, and 1e-5 equals 1e-05."""
    try:
        return cell == value or float(cell) == float(value)
    except ValueError:
        return False


def _column(rows: list[Row], name: str, flag: str) -> str:
    """Check that `name` is a column, and return it.

    Raises:
        OptionError: no such column; the message lists them.
    """
    if name not in rows[0]:
        raise OptionError(f"{flag} {name}: choose from {', '.join(rows[0])}")
    return name


def formatted(rows: Sequence[Row], form: str) -> str:
    """Format the rows as one of `FORMATS`."""
    cells = [[_cell(value, column in RESULTS) for column, value in row.items()] for row in rows]
    if form == "csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([list(rows[0]), *cells])
        return stream.getvalue().rstrip("\n")
    table = PrettyTable(list(rows[0]), align="r")
    table.align[next(iter(rows[0]))] = "l"
    table.add_rows([[printable(cell) for cell in row] for row in cells])
    if form == "md":
        table.set_style(TableStyle.MARKDOWN)
    return table.get_string()


def _cell(value: object, result: bool) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if result and isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_program(main)
