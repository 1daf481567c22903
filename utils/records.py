"""Reading metrics.jsonl: one JSON object an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, none if it is missing; a last line cut off by a kill is passed over."""
    records = []
    if not file.is_file():
        return records
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
