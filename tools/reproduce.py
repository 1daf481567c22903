"""Run the rows of a table, every seed of each, and report mean and spread.

    python -m tools.reproduce --table synthpedes --seeds 3

Runs that are done are not repeated and a killed one is continued, so the same command may be given again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prettytable import PrettyTable, TableStyle

from utils.errors import OptionError
from utils.options import build_parser as train_parser
from utils.options import parse, resolve
from utils.program import run_program

ROOT = Path(__file__).parents[1]
CHECKPOINTS = {"best": "best.pth", "last": "last.pth"}


@dataclass(frozen=True)
class Row:
    """One row of a table: what it is called in the report and in folders, and its flags."""

    title: str
    slug: str
    flags: tuple[str, ...]


CONFIG = ("--config", str(ROOT / "configs" / "SynthPEDES.yaml"))
TABLES = {
    "synthpedes": (
        Row("TAL with CCD", "tal", CONFIG),
        Row("TAL without CCD", "tal_no_ccd", (*CONFIG, "--division", "all")),
        Row("TRL with CCD", "trl", (*CONFIG, "--loss_names", "TRL")),
        Row("TAL with CCD, no noise", "clean", (*CONFIG, "--noisy_rate", "0")),
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        epilog="Arguments after -- are handed on to train.py.",
    )
    parser.add_argument("--table", required=True, help=f"which table: {', '.join(TABLES)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 … N of each row (default: %(default)s)")
    parser.add_argument("--output_dir", default="logs/reproduce", help="for runs and report (default: %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then report."""
    own, more = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = parse(build_parser(), own)
    if args["table"] not in TABLES:
        raise OptionError(f"--table {args['table']}: choose from {', '.join(TABLES)}")
    if args["seeds"] < 1:
        raise OptionError(f"--seeds {args['seeds']}: must be at least 1")
    folder = Path(args["output_dir"]).absolute() / args["table"]
    rows = TABLES[args["table"]]
    for seed in range(1, args["seeds"] + 1):
        for row in rows:
            run_row(row, seed, folder, more, dry_run=args["dry_run"])
    if not args["dry_run"]:
        report(rows, args["seeds"], folder)


def run_row(row: Row, seed: int, folder: Path, more: Sequence[str], *, dry_run: bool) -> None:
    """Run one row with one seed, unless it is done; continue it where it was cut off."""
    output_dir = folder / row.slug / f"seed{seed}"
    command = ["train.py", *row.flags, "--seed", str(seed), "--output_dir", str(output_dir), *more]
    for config in output_dir.glob("*/*/configs.yaml"):
        _check_same(config, command[1:])
    if list(output_dir.glob("*/*/test_metrics.json")):
        return
    if list(output_dir.glob("*/*/last.pth")):
        command = ["train.py", "--resume", "--output_dir", str(output_dir)]
    print(f"{row.title}, seed {seed}: python {shlex.join(command)}", flush=True)
    if dry_run:
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / "output.txt").open("a", encoding="utf-8") as stream:
        status = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=stream, stderr=stream).returncode
    if status:
        last = (output_dir / "output.txt").read_text(encoding="utf-8").strip().splitlines()[-1]
        raise OptionError(f"{row.title}, seed {seed}, ended with status {status}: {last}")


def _check_same(config: Path, arguments: Sequence[str]) -> None:
    """Refuse to count a run that other flags made."""
    was, now = resolve({"config": str(config)}), resolve(parse(train_parser(""), arguments))
    for name in now.keys() - {"num_workers"}:
        if was[name] != now[name]:
            raise OptionError(
                f"{config.parent} was run with {name} {was[name]}, now it would be {now[name]}: "
                "delete it or choose another --output_dir"
            )


def report(rows: Sequence[Row], seeds: int, folder: Path) -> None:
    """Print the table, and write `report.json` and `report.md` into `folder`."""
    results, table = {}, PrettyTable(["", *(f"R1, {name}" for name in CHECKPOINTS), "R1 of each seed, last"])
    for row in rows:
        found = [_metrics(folder / row.slug / f"seed{seed}") for seed in range(1, seeds + 1)]
        r1 = {name: [metrics[file]["BGE+TSE"]["R1"] for metrics in found] for name, file in CHECKPOINTS.items()}
        results[row.slug] = {"title": row.title, "flags": row.flags, "R1": r1, "test_metrics": found}
        shown = [f"{statistics.mean(values):.1f} ± {_spread(values):.1f}" for values in r1.values()]
        table.add_row([row.title, *shown, ", ".join(f"{value:.1f}" for value in r1["last"])])
    table.align = "l"
    table.set_style(TableStyle.MARKDOWN)
    text = f"Test R1 (%) of BGE+TSE, mean ± standard deviation over {seeds} seeds\n\n{table.get_string()}\n"
    (folder / "report.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {folder}/report.md and report.json")


def _metrics(output_dir: Path) -> dict:
    (file,) = output_dir.glob("*/*/test_metrics.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    run_program(main)
