"""Maximum inner product search: exact, or approximate with FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tools.loading import require
from utils.errors import OptionError
from utils.files import atomic_write

REQUIREMENTS = "requirements-demo.txt"
_QUERIES_AT_A_TIME = 64
# FAISS: product quantisation with 4 bits per four dimensions; the candidates are re-ranked by their exact vectors. All
# codes are scanned, because sentences lie far from all images: probing only some inverted lists would miss many
# neighbours.
_DIMENSIONS_PER_CODE = 4
_CANDIDATES_PER_RESULT, _MIN_CANDIDATES = 10, 1000
_MIN_TRAINING, _MAX_TRAINING = 1000, 10_000
_VECTORS_AT_A_TIME = 50_000


class Engine(Protocol):
    """Searches N vectors of width D."""

    def top(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Indices of the `count` vectors with the largest inner products, for each of (Q, D) queries.

        An approximate engine returns more, to be re-ranked by exact inner products.
        """
        ...


def best_first(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest of (N,) scores, best first; ties in original order."""
    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


class Exact:
    """Exhaustive search of (N, D) float32 vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def top(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """See `Engine.top`."""
        results = []
        for start in range(0, len(queries), _QUERIES_AT_A_TIME):
            scores = queries[start : start + _QUERIES_AT_A_TIME] @ self.vectors.T
            results += [best_first(row, count) for row in scores]
        return results


class Faiss:
    """A FAISS index, built from vectors or read from a file."""

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, seed: int = 0) -> Faiss:
        """Train the quantiser on a sample of (N, D) vectors, then encode all.

        The vectors lie in a narrow cone, so their mean is subtracted first: this shifts all inner products of a query
        by the same constant, and the codes need only represent the rest.
        """
        faiss = require("faiss", REQUIREMENTS)
        n, width = vectors.shape
        index = faiss.index_factory(width, f"PQ{width // _DIMENSIONS_PER_CODE}x4fs", faiss.METRIC_INNER_PRODUCT)
        mean = vectors.mean(axis=0)
        sample = np.random.default_rng(seed).integers(n, size=np.clip(n, _MIN_TRAINING, _MAX_TRAINING))
        index.train(vectors[np.sort(sample)] - mean)
        for start in range(0, n, _VECTORS_AT_A_TIME):
            index.add(vectors[start : start + _VECTORS_AT_A_TIME] - mean)
        return cls(index)

    def top(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """See `Engine.top`."""
        candidates = min(self.index.ntotal, max(_MIN_CANDIDATES, _CANDIDATES_PER_RESULT * count))
        return list(self.index.search(np.ascontiguousarray(queries), candidates)[1])

    def write(self, file: Path) -> None:
        """Write atomically."""
        faiss = require("faiss", REQUIREMENTS)
        with atomic_write(file) as partial, partial.open("wb") as stream:
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(stream.write))  # FAISS only opens UTF-8 names

    @classmethod
    def read(cls, file: Path) -> Faiss:
        """Read a file written by `write`.

        Raises:
            OptionError: it is missing or damaged.
        """
        faiss = require("faiss", REQUIREMENTS)
        try:
            with file.open("rb") as stream:
                return cls(faiss.read_index(faiss.PyCallbackIOReader(stream.read)))
        except FileNotFoundError:
            raise OptionError(f"{file.parent} has no up-to-date FAISS index: index again with --faiss") from None
        except (OSError, RuntimeError) as error:
            raise OptionError(f"{file} can't be read, index again with --faiss: {str(error)[-80:]}") from None
