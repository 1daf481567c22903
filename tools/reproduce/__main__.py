"""Train the rows of one of the paper's tables with several seeds, and report them next to the paper's numbers.

    python -m tools.reproduce --list                                      # every row and its command
    python -m tools.reproduce --table 1 --row rde --dataset RSTPReid --noise 0.5 --seeds 3 --root_dir /path/to/data
    python -m tools.reproduce --table 2 --dataset SynthPEDES --seeds 1    # the same rows in miniature, on a CPU

Finished runs are skipped and interrupted ones resumed, so the command can be repeated. Rows evaluated on the same run
share it, across tables too. To use several GPUs, start the command once per GPU: each process takes the next unclaimed
run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable

from tools.reproduce import paper
from tools.reproduce.tables import SYNTH, TABLES, Row
from utils.errors import OptionError
from utils.log import status
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.reproduce", __doc__, epilog="Arguments after -- are passed to train.py.")
    add_plugin(parser)
    parser.add_argument("--table", help=f"table to reproduce: {', '.join(TABLES)}")
    parser.add_argument("--row", help="only these rows, by the names that --list shows, joined by +")
    parser.add_argument("--dataset", help=f"only this data set's rows; {SYNTH}: all of the table's rows in miniature")
    parser.add_argument("--noise", type=float, help="only rows with this noise rate")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N of each row (default: %(default)s)")
    parser.add_argument("--root_dir", default="data", help="folder containing the data sets (default: %(default)s)")
    parser.add_argument("--output_dir", default="logs/reproduce", help="for runs and reports (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the rows of all tables with their commands")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print the remaining commands without running them"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Train what is missing, then report; a failed run doesn't stop the others."""
    own, train_args = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = parse(build_parser(), own)
    if args["list"]:
        print(listing())
        return
    if args["seeds"] < 1:
        raise OptionError(f"--seeds {args['seeds']}: must be at least 1")
    for name in ("root_dir", "output_dir"):
        if not args[name]:
            raise OptionError(f"--{name}: must not be empty")
    rows = select(args["table"], args["row"], args["dataset"], args["noise"])

    status("loading PyTorch")
    from tools.reproduce.train_rows import dry_run, runs_of, train_and_report  # imports torch

    output_dir, root_dir = Path(args["output_dir"]).absolute(), str(Path(args["root_dir"]).absolute())
    train_args = [*(["--plugin", args["plugin"]] if args["plugin"] else []), *train_args]
    runs = runs_of(rows, args["seeds"], output_dir, root_dir, train_args)
    if args["dry_run"]:
        print(*dry_run(runs), sep="\n")
        return
    selection = [args["table"], *(f"{args[name]}" for name in ("row", "dataset", "noise") if args[name] is not None)]
    file = output_dir / f"table_{'_'.join(selection)}_{args['seeds']}_seeds.md"
    title = TABLES[args["table"]].title + (f", in miniature on {SYNTH}" if args["dataset"] == SYNTH else "")
    train_and_report(runs, title, file, TABLES[args["table"]].extra)


def select(table: str | None, names: str | None, dataset: str | None, noise: float | None) -> list[Row]:
    """The rows of a table, filtered by name, data set and noise rate, without duplicates.

    Args:
        names: joined by +.

    Raises:
        OptionError: no such table, or no row matches.
    """
    if table not in TABLES:
        problem = "give --table" if table is None else f"--table {table}"
        raise OptionError(f"{problem}: choose from {', '.join(TABLES)}; --list shows their rows")
    rows = TABLES[table].rows
    if dataset == SYNTH:
        rows = list({(row.name, row.slug): row for row in (row.on_synthpedes() for row in rows)}.values())
    filters: list[tuple[str, str, Sequence[object]]] = [
        ("row", "name", () if names is None else names.split("+")),
        ("dataset", "dataset", () if dataset is None else [dataset]),
        ("noise", "noise", () if noise is None else [noise]),
    ]
    for flag, attribute, wanted in filters:
        choices = list(dict.fromkeys(getattr(row, attribute) for row in rows))
        for value in wanted:
            if value not in choices:
                raise OptionError(f"--{flag} {value}: table {table} has {', '.join(map(str, choices))}")
        rows = [row for row in rows if not wanted or getattr(row, attribute) in wanted]
    return rows


def listing() -> str:
    """Every row of the paper, with the command for those that this code can run."""
    table = PrettyTable(["table", "row", "data", "noise", "the paper's R1, best / last", "command"], align="l")
    for name, content in TABLES.items():
        if name == "3":  # the same rows as table 1
            continue
        for row in content.rows:
            unique = [other.name for other in content.rows].count(row.name) == 1
            narrowed = "" if unique else f" --dataset {row.dataset} --noise {row.noise:g}"
            command = f"python -m tools.reproduce --table {name} --row {row.name}{narrowed}"
            table.add_row(
                _listed("1, 3" if name == "1" else name, row.title, row.dataset, row.noise, row.paper, command)
            )
    for dataset, noise, method in paper.main_rows():
        if method not in paper.OURS:
            numbers = paper.main_numbers(dataset, noise, method)
            table.add_row(_listed("1, 3", method, dataset, noise, numbers, "another system, not implemented here"))
    return table.get_string()


def _listed(table: str, title: str, dataset: str, noise: float, numbers: paper.Numbers, command: str) -> list[str]:
    r1 = " / ".join(f"{checkpoint['R1']:.2f}" for checkpoint in numbers.values())
    return [table, title, dataset, f"{noise:.0%}", r1, command]


if __name__ == "__main__":
    run_program(main)
