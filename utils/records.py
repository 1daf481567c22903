"""Reading metrics.jsonl: one JSON object an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, none if it is missing; up to the first line that a kill cut off."""
    records = []
    if not file.is_file():
        return records
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
            break
        records.append(record)
    return records
