"""The report: our numbers next to the paper's, with the difference, as Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable, TableStyle

from model.precision import ARITHMETIC, PUBLISHED
from tools.reproduce.paper import METRICS
from tools.reproduce.runs import START, Run

# Additional measurements that a table may report: the method of `Run`, and column headings by value.
EXTRAS = {
    "displacement": (Run.displacement, {"towers": "towers moved by", "heads": "heads moved by"}),
    "knowledge": (
        Run.detection,
        {
            "precision": "flagged pairs that are wrong (%)",
            "recall": "wrong pairs flagged (%)",
            "average precision": "average precision (%)",
            "seconds": "seconds",
        },
    ),
}
# Ways to choose a checkpoint, and the paper's checkpoint to compare with.
CHOICES = {START: "", "best by validation": "best", "best by test": "best", "last": "last"}


def summarise(runs: Sequence[Run], *, comparable: bool, extra: str = "") -> dict:
    """Summarise a row's finished runs for the JSON report.

    Every metric has its values, mean, spread and difference to the paper, in percent. The spread is the standard
    deviation over seeds, None for a single one.

    Args:
        comparable: whether the runs have the paper's setting; if not, there is no difference.
        extra: also summarise this one of `EXTRAS`.
    """
    row = runs[0].row
    by_seed = {run.seed: metrics for run in runs if (metrics := run.metrics()) is not None}
    results = {}
    for choice, checkpoint in CHOICES.items():
        chosen = [metrics[choice] for metrics in by_seed.values() if choice in metrics]
        if not chosen:
            continue
        printed = row.paper.get(checkpoint, {}) if comparable else {}
        results[choice] = {metric: _statistics([m[metric] for m in chosen], printed.get(metric)) for metric in METRICS}
    head = {name: getattr(row, name) for name in ("name", "title", "dataset", "noise", "target", "similarity", "flags")}
    precisions = sorted({precision for run in runs if run.seed in by_seed and (precision := run.precision())})
    summary = head | {"seeds": list(by_seed), "arithmetic": precisions, "results": results, "paper": row.paper}
    summary["papers_arithmetic"] = PUBLISHED if row.paper else None
    if extra and by_seed:
        measured = [EXTRAS[extra][0](run) for run in runs if run.seed in by_seed]
        summary[extra] = {name: _statistics([values[name] for values in measured], None) for name in measured[0]}
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


def write_report(title: str, summaries: Sequence[dict], added_flags: str, file: Path, extra: str = "") -> str:
    """Write the report as Markdown to `file` and as JSON next to it.

    Args:
        summaries: the rows, from `summarise`.
        added_flags: flags beyond the rows' own that change the numbers; "" for none.
        extra: also report this one of `EXTRAS`.

    Returns:
        The Markdown.
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
    text += f"With additional flags, so not in the paper's setting: {added_flags}\n\n" if added_flags else ""
    text += f"{table.get_string()}\n\n{_arithmetic(summaries)}\n"
    text += f"\n{_extra_table(summaries, extra)}\n" if extra else ""
    file.write_text(text, encoding="utf-8")
    content = {"title": title, "further_flags": added_flags, "rows": summaries}
    file.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def _arithmetic(summaries: Sequence[dict]) -> str:
    """The legend of the arithmetic column."""
    names = {name for summary in summaries for name in (*summary["arithmetic"], PUBLISHED)}
    return "Arithmetic: " + "; ".join(f"{name}: {what}" for name, what in ARITHMETIC.items() if name in names)


def _extra_table(summaries: Sequence[dict], extra: str) -> str:
    """One of `EXTRAS`, after the last epoch, as a table."""
    headings = EXTRAS[extra][1]
    table = PrettyTable(["row", "data", "noise", *headings.values()])
    for summary in summaries:
        measured = summary.get(extra, {})
        cells = [_short(measured[name]) if name in measured else "" for name in headings]
        table.add_row([summary["title"], summary["dataset"], f"{summary['noise']:.0%}", *cells])
    table.align = "l"
    table.set_style(TableStyle.MARKDOWN)
    return table.get_string()


def _short(value: dict) -> str:
    decimals = 0 if value["mean"] >= 100 else 1 if value["mean"] >= 10 else 2
    return f"{value['mean']:.{decimals}f}" + (f" ± {value['spread']:.{decimals}f}" if value["spread"] else "")


def _cell(value: dict) -> str:
    spread = "" if value["spread"] is None else f" ± {value['spread']:.2f}"
    difference = "" if value["difference"] is None else f" ({value['difference']:+.2f})"
    return f"{value['mean']:.2f}{spread}{difference}"
