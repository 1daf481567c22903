"""Exact and approximate search over 10⁴ to 10⁶ vectors: time, memory, and FAISS's recall of the exact results.

    python -m benchmarks.search                                      # all sizes; the largest needs 16 GB of memory
    python -m benchmarks.search --sizes 10000 100000
    python -m benchmarks.search --index INDEX --from captions.txt    # your own gallery and sentences

"random" vectors are uniform on the sphere, all about equally far apart; "clustered" ones resemble a model's: ten images
per person, all persons in one narrow cone, queried by other images of the same persons and by sentences, which lie in
another cone. Times are medians over the queries.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from prettytable import PrettyTable, TableStyle

from tools.search.commands import open_searcher
from tools.search.engines import Exact, Faiss, best_first
from tools.search.texts import read_sentences
from utils.errors import OptionError
from utils.options import command_parser, parse
from utils.program import run_program

WIDTH, TOP, QUERIES = 1536, 10, 50
_CONE, _PICTURE = 1.5, 0.7  # norms of the shared and the per-image component; the person component has norm 1
_NAMED = 0.35  # norm of the person component in a sentence: 0.09 closer to its images than to others, as with CLIP
_PICTURES = 10
_CHUNK = 20_000

Queries = dict[str, np.ndarray]  # (Q, 1536) for each kind of query


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw(kind: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, Queries]:
    """(count, 1536) float32 unit vectors, and 50 queries of each kind."""
    vectors = np.empty((count, WIDTH), np.float32)
    cone, text_cone = _CONE * _unit(rng.standard_normal((2, WIDTH), np.float32))
    queried = rng.choice(count // _PICTURES, QUERIES, replace=False)
    targets = np.empty((QUERIES, WIDTH), np.float32)

    def vary(rows: int) -> np.ndarray:
        return WIDTH**-0.5 * rng.standard_normal((rows, WIDTH), np.float32)

    for start in range(0, count, _CHUNK):
        rows = vectors[start : start + _CHUNK]
        rows[:] = vary(len(rows))
        if kind == "clustered":
            persons = vary(len(rows) // _PICTURES)
            rows *= _PICTURE
            rows += cone + persons.repeat(_PICTURES, axis=0)
            here = (start // _PICTURES <= queried) & (queried < (start + len(rows)) // _PICTURES)
            targets[here] = persons[queried[here] - start // _PICTURES]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if kind == "random":
        return vectors, {"others": _unit(vary(QUERIES))}
    sentences = text_cone + _NAMED * targets + (1 + _PICTURE**2 - _NAMED**2) ** 0.5 * vary(QUERIES)
    return vectors, {"pictures": _unit(cone + targets + _PICTURE * vary(QUERIES)), "sentences": _unit(sentences)}


def measure(kind: str, vectors: np.ndarray, queries: Queries) -> list[str]:
    """Measure one row of the table."""
    exact, start = Exact(vectors), time.perf_counter()
    faiss = Faiss.build(vectors)
    build = time.perf_counter() - start
    clock, recall = [], {}
    for name, vectors_of_kind in queries.items():
        recalls = []
        for query in vectors_of_kind:  # alternate, so that other load affects both
            start = time.perf_counter()
            expected = exact.top(query[None], TOP)[0]
            middle = time.perf_counter()
            candidates = np.sort(faiss.top(query[None], TOP)[0])
            found = candidates[best_first(vectors[candidates] @ query, TOP)]
            clock.append((middle - start, time.perf_counter() - middle))
            recalls.append(len(set(expected) & set(found)) / TOP)
        recall[name] = f"{100 * np.mean(recalls):.1f}% of {name}"
    exact_ms, faiss_ms = 1000 * np.median(clock, axis=0)
    with tempfile.TemporaryDirectory() as folder:
        faiss.write(Path(folder) / "index")
        size = (Path(folder) / "index").stat().st_size
    row = [f"{len(vectors):,}", kind, f"{vectors.nbytes / 1e9:.2f} GB", f"{exact_ms:.1f} ms"]
    return [*row, f"{size / 1e6:.0f} MB", f"{build:.0f} s", f"{faiss_ms:.1f} ms", ", ".join(recall.values())]


def synthetic(sizes: Sequence[int]) -> Iterator[tuple[str, np.ndarray, Queries]]:
    """Draw vectors of each size and kind."""
    for count in sizes:
        for kind in ("random", "clustered"):
            yield kind, *draw(kind, count, np.random.default_rng(0))


def own(index: Path, file: Path) -> tuple[str, np.ndarray, Queries]:
    """The vectors of a gallery and of the sentences in a file."""
    searcher = open_searcher(
        {
            "index": index,
            "run": None,
            "checkpoint": None,
            "device": "auto",
            "engine": "torch",
            "store": None,
            "faiss": False,
        }
    )
    return str(index), searcher.store.everything()[1], {"sentences": searcher.encoder.texts(read_sentences([], file))}


def main(argv: Sequence[str]) -> None:
    """Print each row as soon as it is measured, then the table."""
    parser = command_parser("benchmarks.search", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="numbers of vectors")
    parser.add_argument("--index", type=Path, help="an index of tools.search, instead of synthetic vectors")
    parser.add_argument("--from", dest="file", type=Path, help="a file with one query sentence per line")
    args = parse(parser, argv)
    if (args["index"] is None) != (args["file"] is None):
        raise OptionError("--index and --from: give both or neither")
    if min(args["sizes"]) < (minimum := _PICTURES * QUERIES):
        raise OptionError(f"--sizes {min(args['sizes'])}: must be at least {minimum}")
    table = PrettyTable(
        ["vectors", "kind", "exact: memory", "a query", "FAISS: memory", "to build", "a query ", "recall@10"], align="r"
    )
    table.set_style(TableStyle.MARKDOWN)
    for vectors in [own(args["index"], args["file"])] if args["index"] else synthetic(args["sizes"]):
        row = measure(*vectors)
        print("  ".join(row), flush=True)
        table.add_row(row)
    print(f"\n{table.get_string()}")


if __name__ == "__main__":
    run_program(main)
