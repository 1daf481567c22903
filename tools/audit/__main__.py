"""List the training pairs that a run classifies as noisy, by CCD, DECL or CRCL, with every vote, for review.

    python -m tools.audit RUN_DIR

Files in RUN_DIR/audit: `pairs.csv`, sorted by suspicion (1 - P(clean), averaged over all votes and epochs);
`pairs.html`, the top pairs with thumbnails; figures; and for runs with injected noise `audit.json`, the precision and
recall of the votes. In `pairs.csv`, put an x into the column `exclude` to drop a pair, or correct its caption in the
column `caption`; later audits keep both. `train.py --corrections pairs.csv` trains with the corrected captions and
without the marked pairs; `train.py --exclude pairs.csv` only drops the marked pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prettytable import PrettyTable

from utils.errors import OptionError
from utils.files import write_text
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program
from utils.run_folder import RunFolder

# Modules that need torch are imported where they are used, so that --help and a mistyped flag don't wait for it.
if TYPE_CHECKING:
    from tools.audit.findings import Findings
    from tools.audit.pairs import Pairs

_EXAMPLES = 8


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.audit", __doc__)
    add_plugin(parser)
    parser.add_argument("run_dir", help="a run folder of train.py, finished or not")
    parser.add_argument("--top", type=int, default=200, help="pairs shown on the page (default: %(default)s)")
    parser.add_argument("--root_dir", help="folder containing the data set's folder (default: the run's)")
    parser.add_argument("--out", help="folder to write (default: RUN_DIR/audit)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Read the history, write table, page and figures, and print precision and recall."""
    args = parse(build_parser(), argv)
    run_dir = Path(args["run_dir"])
    if args["top"] < 1:
        raise OptionError(f"--top {args['top']}: must be at least 1")
    print(f"reading the history of {run_dir} …", flush=True)

    from processor.history import read_history
    from tools.audit.findings import Findings
    from tools.audit.pairs import read_pairs

    division = RunFolder(run_dir).flags().get("division")
    epochs = [epoch.pairs for epoch in read_history(run_dir) if epoch.pairs is not None]
    if not epochs:
        cause = f"--division {division}" if division not in (None, "ccd") else "other code"
        raise OptionError(f"{run_dir} has no votes in epochs/: no epoch is completed, or it was trained with {cause}")
    findings = Findings(epochs)
    pairs = read_pairs(run_dir, args["root_dir"], epochs[-1].loss.shape[1])
    write_audit(findings, pairs, Path(args["out"] or run_dir / "audit"), args["top"], run_dir.resolve().name)


def write_audit(findings: Findings, pairs: Pairs, out: Path, top: int, name: str) -> None:
    """Write all files into `out` and print a summary."""
    from tools.audit.figures import most_suspicious, precision_recall
    from tools.audit.page import Heading, write_page
    from tools.audit.table import write_table

    out.mkdir(parents=True, exist_ok=True)
    suspects, about = findings.suspects().tolist(), findings.summary()
    print(about)
    marked = write_table(findings, pairs, suspects, out / "pairs.csv")
    top_suspects = suspects[:top]
    heading = Heading(f"Suspicious pairs of {name}", f"{about} Here are the first {len(top_suspects):,}.")
    write_page(findings, pairs, top_suspects, marked, heading, out / "pairs.html")
    if suspects:
        most_suspicious(findings, pairs, suspects[:_EXAMPLES], out / "most_suspicious")
    if judgement := findings.judgement():
        write_text(out / "audit.json", json.dumps(judgement, indent=1) + "\n")
        precision_recall(findings, judgement, out / "precision_recall")
        print(judgement_table(judgement))
    print(f"wrote {out}: pairs.csv, pairs.html and figures")


def judgement_table(judgement: dict[str, Any]) -> str:
    """Precision and recall of the votes as a table."""
    table = PrettyTable(["last epoch", "noisy: flagged", "missed", "clean: flagged", "passed", "precision", "recall"])
    table.align = "r"
    table.align["last epoch"] = "l"
    keys = ("noisy_flagged", "noisy_missed", "clean_flagged", "clean_passed")
    for name, vote in judgement["last_epoch"].items():
        table.add_row([name, *(vote[key] for key in keys), f"{vote['precision']:.3f}", f"{vote['recall']:.3f}"])
    scores = ", ".join(f"{name} {value:.3f}" for name, value in judgement["average_precision"].items())
    return f'{table.get_string()}\naverage precision of "noisy": {scores} (chance {judgement["chance"]:.3f})'


if __name__ == "__main__":
    run_program(main)
