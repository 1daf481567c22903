"""Finding the vectors with the largest inner products: exactly, or approximately with FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from tools.loading import require
from utils.errors import OptionError
from utils.files import in_one_step

REQUIREMENTS = "requirements-demo.txt"
_QUERIES_AT_A_TIME = 64
# FAISS: inverted lists of vectors in 8 bits a number, of which the nearest share is searched; what it finds is ranked
# again by the exact vectors.
_SEARCHED = 1 / 8
_SEARCHED_WHOLE = 10_000  # below so many vectors all lists are searched
_CANDIDATES = 10
_TRAINING_PER_LIST = 40
_ADDED_AT_A_TIME = 50_000


class Engine(Protocol):
    """Searches N vectors of width D."""

    def top(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """For each of (Q, D) queries the positions (exact) or ids (FAISS) of up to `count` vectors, best first."""
        ...


def best_first(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest of (N,) scores, best first; equal ones in their order."""
    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


class Exact:
    """Every inner product is formed. `vectors` (N, D) float32."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def top(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """See `Engine.top`."""
        found = []
        for start in range(0, len(queries), _QUERIES_AT_A_TIME):
            scores = queries[start : start + _QUERIES_AT_A_TIME] @ self.vectors.T
            found += [best_first(row, count) for row in scores]
        return found


class Faiss:
    """An index of FAISS, built from vectors or read from a file."""

    def __init__(self, index: object) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, ids: np.ndarray, seed: int = 0) -> Faiss:
        """Cluster (N, D) vectors into about 2·√N lists, and fill them under their (N,) ids.

        What all vectors share is taken from them first. That changes all inner products of a query by the same number,
        and so no order; but vectors of a narrow cone would crowd into the few lists nearest its middle.
        """
        faiss = require("faiss", REQUIREMENTS)
        n, width = vectors.shape
        lists = max(1, min(int(2 * n**0.5), n // 39))  # 39 is the fewest that FAISS wants for a centre
        index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(seed).choice(n, min(n, _TRAINING_PER_LIST * lists), replace=False)
        mean = vectors.mean(axis=0)
        index.train(vectors[np.sort(sample)] - mean)
        for start in range(0, n, _ADDED_AT_A_TIME):
            rows = slice(start, start + _ADDED_AT_A_TIME)
            index.add_with_ids(vectors[rows] - mean, ids[rows])
        index.nprobe = lists if n < _SEARCHED_WHOLE else max(1, round(lists * _SEARCHED))
        return cls(index)

    def top(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """See `Engine.top`; ids, from which the exact vectors may choose better ones."""
        wanted = min(self.index.ntotal, max(100, _CANDIDATES * count))
        _, ids = self.index.search(np.ascontiguousarray(queries), wanted)
        return [row[row >= 0] for row in ids]

    def write(self, file: Path) -> None:
        """Write in one step."""
        faiss = require("faiss", REQUIREMENTS)
        with in_one_step(file) as partial:
            faiss.write_index(self.index, str(partial))

    @classmethod
    def read(cls, file: Path) -> Faiss:
        """Read what `write` has written.

        Raises:
            OptionError: it is missing or damaged.
        """
        faiss = require("faiss", REQUIREMENTS)
        try:
            return cls(faiss.read_index(str(file)))
        except RuntimeError as error:
            raise OptionError(f"{file} can't be read, index again with --faiss: {str(error)[-80:]}") from None
