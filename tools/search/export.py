"""An index's vectors in the formats that vector databases import."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tools.search.store import Store
from utils.errors import OptionError


def export_vectors(store: Store, out: Path) -> None:
    """Write `vectors.safetensors` (tensors "vectors", "ids"), `vectors.npy` and `vectors.jsonl` into `out`.

    A line of `vectors.jsonl` is {"row", "id", "file"} of a row of `vectors.npy`: (N, D) float32 of [bge, tse]/√2, to be
    searched by inner product.

    Raises:
        OptionError: the index holds no vector.
    """
    ids, paths, vectors = store.everything()
    if not paths:
        raise OptionError(f"{store.folder} holds no image that could be read")
    about = {name: store.about[name] for name in ("fingerprint", "gallery", "width", "bge_width")}
    about |= {"metric": "inner product", "layout": "[bge, tse] / sqrt(2)"}
    gallery = Path(store.about["gallery"])
    lines = (
        json.dumps({"row": row, "id": int(number), "file": str(gallery / path)}) + "\n"
        for row, (number, path) in enumerate(zip(ids, paths, strict=True))
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "vectors.safetensors").write_bytes(save({"vectors": vectors, "ids": ids}, about))
    np.save(out / "vectors.npy", vectors)
    (out / "vectors.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"wrote {len(paths):,} vectors of width {vectors.shape[1]:,} to {out}: .safetensors, .npy with .jsonl")
