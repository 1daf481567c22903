"""Exact and approximate search over 10⁴ to 10⁶ vectors: time, memory, and recall of FAISS against exact.

    python -m benchmarks.search                       # all sizes; the largest needs 16 GB of memory and some minutes
    python -m benchmarks.search --sizes 10000 100000

"random" vectors are drawn evenly from the sphere, where no index can do much; "clustered" ones as a model gives them,
ten pictures a person, all persons in one narrow cone. Times are medians over the queries.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prettytable import PrettyTable, TableStyle

from tools.search.engines import Exact, Faiss, best_first
from utils.options import command_parser, parse
from utils.program import run_program

WIDTH, TOP, QUERIES = 1536, 10, 50
_CONE, _PICTURE = 1.5, 0.7  # lengths of what all share and of what tells pictures of a person apart; a person's is 1
_PICTURES = 10
_CHUNK = 20_000


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw(kind: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(count, 1536) float32 unit vectors, and 50 queries: random, or another picture of a stored person."""
    vectors = np.empty((count, WIDTH), np.float32)
    scale = WIDTH**-0.5
    cone = _CONE * _unit(rng.standard_normal((1, WIDTH), np.float32))
    asked, queries = set(rng.choice(count // _PICTURES, QUERIES, replace=False).tolist()), []
    for start in range(0, count, _CHUNK):
        rows = vectors[start : start + _CHUNK]
        rng.standard_normal(dtype=np.float32, out=rows)
        if kind == "clustered":
            persons = scale * rng.standard_normal((len(rows) // _PICTURES, WIDTH), np.float32)
            rows *= _PICTURE * scale
            rows += cone + persons.repeat(_PICTURES, axis=0)
            for number in range(len(persons)):
                if start // _PICTURES + number in asked:
                    own = _PICTURE * scale * rng.standard_normal((1, WIDTH), np.float32)
                    queries.append(cone + persons[number : number + 1] + own)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if kind == "random":
        queries = [rng.standard_normal((1, WIDTH), np.float32) for _ in range(QUERIES)]
    return vectors, _unit(np.concatenate(queries))


def measure(kind: str, count: int) -> list[str]:
    """One row of the table."""
    vectors, queries = draw(kind, count, np.random.default_rng(0))
    exact, start = Exact(vectors), time.perf_counter()
    faiss = Faiss.build(vectors, np.arange(count))
    build = time.perf_counter() - start
    clock, recall = [], []
    for query in queries:  # one after the other, so that other work on the machine hinders both alike
        start = time.perf_counter()
        expected = exact.top(query[None], TOP)[0]
        between = time.perf_counter()
        candidates = np.sort(faiss.top(query[None], TOP)[0])
        found = candidates[best_first(vectors[candidates] @ query, TOP)]
        clock.append((between - start, time.perf_counter() - between))
        recall.append(len(set(expected) & set(found)) / TOP)
    exact_ms, faiss_ms = 1000 * np.median(clock, axis=0)
    with tempfile.TemporaryDirectory() as folder:
        faiss.write(Path(folder) / "index")
        size = (Path(folder) / "index").stat().st_size
    shown = [f"{count:,}", kind, f"{vectors.nbytes / 1e9:.2f} GB", f"{exact_ms:.1f} ms"]
    return [*shown, f"{size / 1e9:.2f} GB", f"{build:.0f} s", f"{faiss_ms:.1f} ms", f"{100 * np.mean(recall):.1f}%"]


def main(argv: Sequence[str]) -> None:
    """Print a row as soon as it is measured, then the table."""
    parser = command_parser("benchmarks.search", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="numbers of vectors")
    args = parse(parser, argv)
    table = PrettyTable(
        ["vectors", "kind", "exact: memory", "a query", "FAISS: memory", "to build", "a query ", "recall@10"], align="r"
    )
    table.set_style(TableStyle.MARKDOWN)
    for count in args["sizes"]:
        for kind in ("random", "clustered"):
            row = measure(kind, count)
            print("  ".join(row), flush=True)
            table.add_row(row)
    print(f"\n{table.get_string()}")


if __name__ == "__main__":
    run_program(main)
