"""Evaluating the records of metrics.jsonl: best epoch, the similarity that selects it, training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def selecting_similarity(trained: tuple[str, ...], metrics: Mapping[str, Any]) -> str:
    """The similarity that selects the best epoch: the trained embeddings' if evaluated, else the fused one."""
    matching = (name for name in metrics if set(name.split("+")) == set(trained))
    return next(matching, list(metrics)[-1])


def selected_on(facts: Mapping[str, Any]) -> str:
    """The split, "val" or "test", that the records' "val" was measured on; "val" for older runs, which don't say."""
    return str(facts.get("selected_on", "val"))


def split_title(split: str) -> str:
    """A split's name in figures."""
    return {"val": "validation"}.get(split, split)


def best_record(records: Sequence[Mapping[str, Any]], trained: str, split: str = "val") -> Mapping[str, Any] | None:
    """The record of the first epoch with the highest R1 on a split; None if none was evaluated.

    Args:
        records: the lines of metrics.jsonl.
        trained: the trained embeddings, joined as in `--trained`.
    """
    evaluated = [record for record in records if record.get(split)]
    r1 = {id(r): r[split][selecting_similarity(tuple(trained.split("+")), r[split])]["R1"] for r in evaluated}
    return max(evaluated, key=lambda record: r1[id(record)], default=None)


def seconds_of(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds spent on training and division, as far as recorded."""
    return sum(record.get("seconds", 0) + (record.get("ccd") or {}).get("seconds", 0) for record in records)
