"""The suspects as a CSV, in which a person may mark pairs for `train.py --exclude`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tools.audit.findings import Findings
from tools.audit.pairs import Pairs

COLUMNS = (
    "pair",
    "exclude",
    "suspicion",
    "held_noisy_by",
    "BGE_p_clean",
    "TSE_p_clean",
    "BGE_loss",
    "TSE_loss",
    "BGE_times_noisy",
    "TSE_times_noisy",
    "epochs",
    "person",
    "image",
    "caption",
)


def write_table(findings: Findings, pairs: Pairs, suspects: Sequence[int], file: Path) -> None:
    """Write the suspects, the most suspicious first; with `truth` (noisy or clean) in the last column if known.

    P(clean) and loss are the last epoch's; suspicion is 1 − P(clean), averaged over both votes and all epochs.
    """
    truth = findings.truth
    last = findings.last
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*COLUMNS, *([] if truth is None else ["truth"])])
        for pair in suspects:
            row = [pair, "", f"{findings.suspicion[pair]:.4f}", findings.held_by(pair)]
            row += [f"{value:.4f}" for value in (*last.clean_probability[:, pair], *last.loss[:, pair])]
            row += [*findings.times_noisy[:, pair], len(findings.epochs)]
            row += [pairs.split.caption_pids[pair], pairs.image(pair), pairs.caption(pair)]
            writer.writerow([*row, *([] if truth is None else ["noisy" if truth[pair] else "clean"])])
    partial.replace(file)
