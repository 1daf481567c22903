"""Check a data set before training on it: sizes, images, identities, captions, noise indices.

    python -m tools.check_data --dataset_name CUHK-PEDES --root_dir /path/to/data
    python -m tools.check_data --dataset_name mine.json
    python -m tools.check_data --dataset_name ICFG-PEDES --against RSTPReid   # images that both have

Every image is decoded. Problems are counted and listed with a remedy; a JSON file lists every occurrence. Exit status:
0 if training would start, 1 if an error would stop it, 2 if there is nothing to check. Warnings, such as sizes that
differ from the published ones, don't stop training, but do read them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prettytable import PrettyTable

from datasets.findings import Finding
from datasets.settings import DATASETS
from utils.errors import OptionError
from utils.log import status
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program

# Modules that need torch are imported where they are used, so that --help and a mistyped flag don't wait for it.
if TYPE_CHECKING:
    from datasets.annotations import Split

_WIDTHS = (22, 32, 26)


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.check_data", __doc__)
    add_plugin(parser)
    parser.add_argument("--dataset_name", help=f"{', '.join(DATASETS)}, or an annotation file")
    parser.add_argument(
        "--root_dir", default="data", help="folder containing the data set's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--noisy_rate", type=float, help="check the noise index of this rate (default: all existing ones)"
    )
    parser.add_argument("--noisy_file", default="", help="check this noise index; unused at rate 0")
    parser.add_argument(
        "--split_all",
        default="",
        choices=["train"],
        help="read entries without a split as training pairs, as train.py --split_all does",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets or annotation files to search for pixel-identical images",
    )
    parser.add_argument("--output_dir", default="logs", help="folder for the JSON file (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Check the data set, print two tables, write the JSON file, and exit with the documented status."""
    args = parse(build_parser(), argv)
    if args["dataset_name"] is None:
        raise OptionError(f"give --dataset_name: {', '.join(DATASETS)}, or an annotation file")
    name = args["dataset_name"]
    status(f"reading {name}")

    from datasets.catalogue import short_name, sizes_of
    from datasets.check import check_dataset

    options = {key: args[key] for key in ("noisy_rate", "noisy_file", "split_all", "against")}
    splits, findings = check_dataset(name, Path(args["root_dir"]), **options)
    print(_sizes_table(splits, sizes_of(name)))
    print(_findings_table(findings) if findings else "no problems found")
    file = Path(args["output_dir"]) / f"check_data_{short_name(name)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset_name": name,
        "splits": {key: dict(zip(("images", "captions", "persons"), split.size)) for key, split in splits.items()},
        "findings": [
            {"what": f.what, "severity": f.severity, "count": len(f.where), "remedy": f.remedy, "where": f.where}
            for f in findings
        ],
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"the full list is in {file}")
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


def _sizes_table(splits: Mapping[str, Split], published: Mapping[str, tuple[int, int, int]]) -> str:
    from datasets.check import SPLITS

    table = PrettyTable(["split", "images", "captions", "persons", "as published"], align="r")
    table.align["split"] = "l"
    for name in SPLITS:
        size = splits[name].size if name in splits else (0, 0, 0)
        verdict = "–"
        if name in published:
            verdict = "yes" if published[name] == size else "no: {:,}, {:,}, {:,}".format(*published[name])
        table.add_row([name, *(f"{number:,}" for number in size), verdict])
    return table.get_string()


def _findings_table(findings: Sequence[Finding]) -> str:
    table = PrettyTable(["", "problem", "first occurrence", "remedy"], align="l")
    table.max_width = dict(zip(table.field_names[1:], _WIDTHS, strict=True))  # for a terminal of 100 columns
    for finding in findings:
        problem = f"{len(finding.where):,} × {finding.what}"
        table.add_row([finding.severity, problem, finding.where[0], finding.remedy], divider=True)
    return table.get_string()


if __name__ == "__main__":
    run_program(main)
