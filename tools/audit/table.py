"""The suspects as a CSV file for marking pairs or correcting captions, read by `train.py --corrections`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from datasets.corrections import NO_EDITS, read_edits
from datasets.exclusion import as_cell, original_of
from tools.audit.findings import Findings
from tools.audit.pairs import Pairs
from utils.files import atomic_write


def write_table(findings: Findings, pairs: Pairs, suspects: Sequence[int], file: Path) -> set[int]:
    """Write the suspects, most suspicious first; the last column is `truth` (noisy or clean) if known.

    P(clean) and loss are the last epoch's; suspicion is 1 − P(clean), averaged over all votes and epochs. Marks and
    corrections in an existing `file` are kept; their pairs that are no longer suspects come last.

    Returns:
        The marked pairs.

    Raises:
        DataError: the existing file can't be read, or was made for other data.
    """
    edits = read_edits(file, pairs.split, pairs.permutation) if file.is_file() else NO_EDITS
    suspects = [*suspects, *sorted({*edits.excluded, *edits.captions}.difference(suspects))]
    truth, last = findings.truth, findings.last
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)  # after the byte order mark that spreadsheets expect
        vote_columns = [f"{name}_{what}" for what in ("p_clean", "loss", "times_noisy") for name in findings.names]
        header = [
            "pair",
            "exclude",
            "suspicion",
            "flagged_by",
            *vote_columns,
            "epochs",
            "person",
            "image",
            "caption",
            "original",
        ]
        writer.writerow([*header, *([] if truth is None else ["truth"])])
        for pair in suspects:
            row = [
                pair,
                "x" if pair in edits.excluded else "",
                f"{findings.suspicion[pair]:.4f}",
                findings.flagged_by(pair),
            ]
            row += [f"{value:.4f}" for value in (*last.clean_probability[:, pair], *last.loss[:, pair])]
            row += [*findings.times_noisy[:, pair], len(findings.epochs)]
            caption = pairs.caption(pair)
            row += [pairs.person(pair), as_cell(pairs.image(pair)), as_cell(edits.captions.get(pair, caption))]
            row += [original_of(pairs.original(pair))]
            writer.writerow([*row, *([] if truth is None else ["noisy" if truth[pair] else "clean"])])
    return edits.excluded
