"""Exporting an index's vectors in formats that vector databases import."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tools.search.rows import identity
from tools.search.store import Store
from utils.errors import OptionError, printable
from utils.files import atomic_write, write_text


def export_vectors(store: Store, out: Path) -> None:
    """Write `vectors.safetensors` (tensors "vectors", "ids"), `vectors.npy` and `vectors.jsonl` into `out`.

    Each line of `vectors.jsonl` is {"row", "id", "file"} of a row of `vectors.npy`, which is (N, D) float32 with
    `About.layout`, for search by inner product.

    Raises:
        OptionError: the index is empty.
    """
    paths, vectors = store.everything()
    if not paths:
        raise OptionError(f"{store.name} contains no readable image")
    ids = np.array([identity(path) for path in paths], np.int64)
    about = {name: printable(str(value)) for name, value in store.about._asdict().items()}
    about |= {"widths": json.dumps(store.about.widths), "metric": "inner product", "layout": store.about.layout}
    lines = (
        json.dumps({"row": row, "id": int(number), "file": str(store.about.gallery / path)}) + "\n"
        for row, (number, path) in enumerate(zip(ids, paths, strict=True))
    )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "vectors.safetensors") as partial:
        partial.write_bytes(save({"vectors": vectors, "ids": ids}, about))
    with atomic_write(out / "vectors.npy") as partial, partial.open("wb") as stream:
        np.save(stream, vectors)
    write_text(out / "vectors.jsonl", "".join(lines))
    summary = f"wrote {len(paths):,} vectors of width {vectors.shape[1]:,} to {out}: .safetensors, .npy with .jsonl"
    print(printable(summary))
