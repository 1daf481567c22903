"""Runs as rows: differing flags, results, progress."""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from processor.records import best_record, seconds_of, selected_on, selecting_similarity
from tools.differing import differing_flags, display_values, flags_of
from utils.errors import UserError, printable
from utils.run_folder import CHECKPOINTS, EXPORTED, RunFolder

METRICS = ("R1", "mAP", "rSum")
_RUN_COLUMNS = ("run", "state", "epochs", "best")
RESULTS = (*(f"{split}_{name}" for split in ("val", "test") for name in METRICS), "seconds")
Row = dict[str, Any]  # by column; None if unknown


def find_runs(folder: Path) -> list[RunFolder]:
    """The runs in a folder and its subfolders, sorted by the time in their names, without exported models."""
    folders = [file.parent for file in folder.rglob("configs.yaml") if not (file.parent / EXPORTED).is_file()]
    return [RunFolder(path) for path in sorted(folders, key=lambda path: (path.name, path))]


def read_rows(runs: Sequence[RunFolder], also: Iterable[str] = ()) -> list[Row]:
    """One row per run: folder, differing flags, state, completed epochs, best epoch, metrics, seconds.

    Args:
        also: flags to show even if they don't differ.

    "val_…" are the best epoch's metrics and "test_…" those of best.pth, by the similarity that selects it, in percent.
    A run that selects on the test split has no "val_…"; until it is tested, "test_…" are the best epoch's. A run with a
    damaged file has state "damaged"; the reason goes to stderr. All rows have the same columns.
    """
    results = []
    for run in runs:
        try:
            flags, row = flags_of(run), _results(run)
        except UserError as error:
            print(printable(error.line), file=sys.stderr)
            flags, row = {}, {"state": "damaged"}
        results.append((flags, {"run": str(run)} | row))
    readable = [flags for flags, _ in results if flags]
    names = list(dict.fromkeys([*differing_flags(readable), *also]))
    values = iter(display_values(readable, names))
    columns = ("run", *names, *_RUN_COLUMNS[1:], *RESULTS)
    rows = [(next(values) if flags else {}) | row for flags, row in results]
    return [{column: row.get(column) for column in columns} for row in rows]


def _results(run: RunFolder) -> Row:
    flags, records = flags_of(run), run.records()
    trained = str(flags["trained"])
    row: Row = {"state": _state(run), "epochs": f"{records[-1]['epoch'] if records else 0}/{flags['num_epoch']}"}
    best, tested = best_record(records, trained), run.test_metrics().get(CHECKPOINTS[0])
    if best:
        row |= {"best": best["epoch"]} | _metrics(best["val"], trained, selected_on(run.facts()))
    if tested:
        row |= _metrics(tested, trained, "test")
    return row | {"seconds": round(seconds_of(records))}


def _metrics(rows: Mapping[str, Mapping[str, float]], trained: str, split: str) -> Row:
    metrics = rows[selecting_similarity(tuple(trained.split("+")), rows)]
    return {f"{split}_{name}": metrics[name] for name in METRICS}


def _state(run: RunFolder) -> str:
    return "running" if run.is_locked() else "done" if run.is_finished() else "stopped"


def group(rows: Sequence[Row]) -> list[Row]:
    """Group rows that differ only in the seed: number of runs, states, and "mean ± standard deviation" of each result.

    A single run has no deviation.
    """
    varying = {"seed", *_RUN_COLUMNS, *RESULTS}
    groups = defaultdict(list)
    for row in rows:
        groups[str([value for name, value in row.items() if name not in varying])].append(row)
    grouped = []
    for members in groups.values():
        states = ", ".join(f"{count} {state}" for state, count in Counter(row["state"] for row in members).items())
        shared = {name: value for name, value in members[0].items() if name not in varying}
        results = {name: _mean([row[name] for row in members if row[name] is not None]) for name in ("best", *RESULTS)}
        grouped.append({"runs": len(members)} | shared | {"state": states} | results)
    return grouped


def _mean(values: Sequence[float]) -> str | None:
    if not values:
        return None
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def order(rows: Iterable[Row], column: str) -> list[Row]:
    """Sort rows by a column: results descending, flags ascending, unknown values last."""
    rows = list(rows)
    known = [row for row in rows if row[column] is not None]
    if column in (*RESULTS, "best"):
        known.sort(key=lambda row: -float(str(row[column]).split()[0]))
    else:
        known.sort(key=lambda row: (isinstance(row[column], str), row[column]))
    return known + [row for row in rows if row[column] is None]
