"""The report: ours beside the paper's, with the difference, as a table to print, Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable, TableStyle

from model.precision import ARITHMETIC, PUBLISHED
from tools.reproduce.paper import METRICS
from tools.reproduce.runs import START, Run

# What else a table may report of a row: what a run says of it, and the heading of each of its values.
MORE = {
    "displacement": (Run.displacement, {"towers": "towers moved by", "heads": "heads moved by"}),
    "knowledge": (
        Run.knowledge,
        {
            "precision": "flagged pairs that are wrong (%)",
            "recall": "wrong pairs flagged (%)",
            "average precision": "average precision (%)",
            "seconds": "seconds",
        },
    ),
}
# Ways to choose a checkpoint, and the paper's checkpoint each is compared with.
CHOICES = {START: "", "best by validation": "best", "best by test": "best", "last": "last"}


def summarise(runs: Sequence[Run], *, comparable: bool, more: str = "") -> dict:
    """One row's finished runs: seeds, arithmetic, and for each choice and metric values, mean, spread and difference to
    the paper; values, mean and spread of `more`, one of `MORE`.

    The spread is the standard deviation over seeds, null for a single one; all in percent. Runs that further flags
    changed are not `comparable`, and have no difference.
    """
    row = runs[0].row
    found = {run.seed: metrics for run in runs if (metrics := run.metrics()) is not None}
    results = {}
    for choice, checkpoint in CHOICES.items():
        of_seed = [metrics[choice] for metrics in found.values() if choice in metrics]
        if not of_seed:
            continue
        printed = row.paper.get(checkpoint, {}) if comparable else {}
        results[choice] = {metric: _statistics([m[metric] for m in of_seed], printed.get(metric)) for metric in METRICS}
    head = {name: getattr(row, name) for name in ("name", "title", "dataset", "noise", "target", "similarity", "flags")}
    precisions = sorted({precision for run in runs if run.seed in found and (precision := run.precision())})
    summary = head | {"seeds": list(found), "arithmetic": precisions, "results": results, "paper": row.paper}
    summary["papers_arithmetic"] = PUBLISHED if row.paper else None
    if more and found:
        said = [MORE[more][0](run) for run in runs if run.seed in found]
        summary[more] = {part: _statistics([values[part] for values in said], None) for part in said[0]}
    return summary


def _statistics(values: Sequence[float], printed: float | None) -> dict:
    mean = statistics.mean(values)
    return {
        "values": values,
        "mean": mean,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "paper": printed,
        "difference": None if printed is None else mean - printed,
    }


def write_report(title: str, summaries: Sequence[dict], further: str, file: Path, more: str = "") -> str:
    """Write the rows, as `summarise` gives them, to `file` as Markdown and, with the ending .json, as JSON.

    Returns the text.

    Args:
        further: flags that all runs were given beside their rows' own and that change their numbers, "" for none.
        more: one of `MORE`, to be reported too.
    """
    table = PrettyTable(["row", "data", "noise", "arithmetic", "checkpoint", *METRICS, "seeds"])
    for summary in summaries:
        data = f"{summary['dataset']} → {summary['target']}" if summary["target"] else summary["dataset"]
        name = [summary["title"], data, f"{summary['noise']:.0%}"]
        for choice, metrics in summary["results"].items():
            cells = [_cell(metrics[metric]) for metric in METRICS]
            table.add_row([*name, ", ".join(summary["arithmetic"]), choice, *cells, len(summary["seeds"])])
        if not summary["results"]:
            table.add_row([*name, "", "no finished run", *[""] * len(METRICS), 0])
        for checkpoint, printed in summary["paper"].items():
            cells = [f"{printed[metric]:.2f}" if metric in printed else "" for metric in METRICS]
            table.add_row([*name, summary["papers_arithmetic"], f"the paper's {checkpoint}", *cells, ""])
    table.align = "l"
    table.set_style(TableStyle.MARKDOWN)
    text = f"{title[0].upper()}{title[1:]}\n\n"
    text += "Percent on the test split, mean ± standard deviation over seeds (difference to the paper)\n\n"
    text += f"With additional flags, so not in the paper's setting: {further}\n\n" if further else ""
    text += f"{table.get_string()}\n\n{_arithmetic(summaries)}\n"
    text += f"\n{_more(summaries, more)}\n" if more else ""
    file.write_text(text, encoding="utf-8")
    content = {"title": title, "further_flags": further, "rows": summaries}
    file.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def _arithmetic(summaries: Sequence[dict]) -> str:
    """What the column of that name says."""
    names = {name for summary in summaries for name in (*summary["arithmetic"], PUBLISHED)}
    return "Arithmetic: " + "; ".join(f"{name}: {what}" for name, what in ARITHMETIC.items() if name in names)


def _more(summaries: Sequence[dict], more: str) -> str:
    """A table of what else was asked for, after the last epoch."""
    headings = MORE[more][1]
    table = PrettyTable(["row", "data", "noise", *headings.values()])
    for summary in summaries:
        found = summary.get(more, {})
        cells = [_short(found[part]) if part in found else "" for part in headings]
        table.add_row([summary["title"], summary["dataset"], f"{summary['noise']:.0%}", *cells])
    table.align = "l"
    table.set_style(TableStyle.MARKDOWN)
    return table.get_string()


def _short(found: dict) -> str:
    decimals = 0 if found["mean"] >= 100 else 1 if found["mean"] >= 10 else 2
    return f"{found['mean']:.{decimals}f}" + (f" ± {found['spread']:.{decimals}f}" if found["spread"] else "")


def _cell(found: dict) -> str:
    spread = "" if found["spread"] is None else f" ± {found['spread']:.2f}"
    difference = "" if found["difference"] is None else f" ({found['difference']:+.2f})"
    return f"{found['mean']:.2f}{spread}{difference}"
