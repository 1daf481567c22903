"""The paper's numbers, in percent (`paper_numbers.json`)."""

from __future__ import annotations

import json
from pathlib import Path

METRICS = ("R1", "R5", "R10", "mAP", "mINP")
OURS = ("RDE", "CLIP-C", "IRRA", "DECL")  # methods that this code can run
Numbers = dict[str, dict[str, float]]  # checkpoint, "best" or "last" → metric → percent

_PAPER = json.loads(Path(__file__).with_name("paper_numbers.json").read_text(encoding="utf-8"))


def _metrics(row: dict) -> dict[str, float]:
    return {name: row[name] for name in METRICS if row.get(name) is not None}


def main_numbers(dataset: str, noise: float, method: str) -> Numbers:
    """A method's row of tables 1 and 3; empty if they have none."""
    key = (dataset, noise, method)
    numbers = {
        row["checkpoint"]: _metrics(row)
        for row in _PAPER["main"]
        if (row["dataset"], row["noise"], row["method"]) == key
    }
    if key == ("CUHK-PEDES", 0.2, "RDE"):  # swapped in the paper, as the authors confirmed
        return {"best": numbers["last"], "last": numbers["best"]}
    return numbers


def main_rows() -> list[tuple[str, float, str]]:
    """(data set, noise, method) of every row of tables 1 and 3, in print order."""
    return list(dict.fromkeys((row["dataset"], row["noise"], row["method"]) for row in _PAPER["main"]))


def ablation(table: int, row: int) -> Numbers:
    """A row of table 2 or 8."""
    (match,) = (r for r in _PAPER["ablation"] if (r["table"], r["row"]) == (f"table{table}", row))
    return {"best": _metrics(match)}


def token_selection(head: str, pooling: str) -> Numbers:
    """A row of table 7: head "TSE" or "TSE'", pooling as in `--tse_pool`."""
    (match,) = (row for row in _PAPER["tse"] if (row["head"], row["pooling"]) == (head, pooling))
    return {"best": _metrics(match)}


def figure3(loss: str) -> Numbers:
    """R1 in figure 3's caption."""
    return {"best": {"R1": _PAPER["figure3"]["R1"][loss]}}


def cross_domain(source: str, target: str) -> Numbers:
    """R1 of RDE trained on one data set and tested on another, as measured for ICL (CVPR 2025)."""
    return {"best": {"R1": _PAPER["cross_domain"][f"{source}->{target}"]}}
