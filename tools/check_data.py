"""Check a data set before training on it: sizes, images, identities, captions, noise indices.

    python -m tools.check_data --dataset_name CUHK-PEDES --root_dir /path/to/data
    python -m tools.check_data --dataset_name mine.json
    python -m tools.check_data --dataset_name ICFG-PEDES --against RSTPReid   # images that both have

Every image is decoded and everything that is found is counted, with what to do about it; a JSON file lists all
places. The exit status is 0 if training would start, 1 if something found would stop it, 2 if there is nothing to
check. Remarks, such as sizes other than the published ones, do not stop training, but read them.
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
        "--root_dir", default="data", help="the folder that holds the data set's (default: %(default)s)"
    )
    parser.add_argument(
        "--noisy_rate", type=float, help="check the noise index for this rate (default: all that exist)"
    )
    parser.add_argument("--noisy_file", default="", help="check this noise index; none at rate 0")
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
        help="data sets or annotation files in which to look for pixel-identical images",
    )
    parser.add_argument("--output_dir", default="logs", help="where the JSON file goes (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Check, print two tables, write the JSON file, and exit with the status documented in the help."""
    args = parse(build_parser(), argv)
    if args["dataset_name"] is None:
        raise OptionError(f"give --dataset_name: {', '.join(DATASETS)}, or an annotation file")
    name = args["dataset_name"]
    status(f"reading {name}")

    from datasets.catalogue import short_name, sizes_of
    from datasets.check import check_dataset

    given = {key: args[key] for key in ("noisy_rate", "noisy_file", "split_all", "against")}
    splits, findings = check_dataset(name, Path(args["root_dir"]), **given)
    print(_sizes_table(splits, sizes_of(name)))
    print(_findings_table(findings) if findings else "no problems found")
    file = Path(args["output_dir"]) / f"check_data_{short_name(name)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset_name": name,
        "splits": {of: dict(zip(("images", "captions", "persons"), split.size)) for of, split in splits.items()},
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
    table = PrettyTable(["", "found", "the first", "what to do"], align="l")
    table.max_width = dict(zip(table.field_names[1:], _WIDTHS, strict=True))  # for a terminal of 100 columns
    for finding in findings:
        found = f"{len(finding.where):,} × {finding.what}"
        table.add_row([finding.severity, found, finding.where[0], finding.remedy], divider=True)
    return table.get_string()


if __name__ == "__main__":
    run_program(main)
