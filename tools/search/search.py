"""Sentences in, ranked images out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from processor.evaluation import SIMILARITIES
from tools.search.encode import Encoder
from tools.search.engines import Engine, Exact, Faiss, best_first
from tools.search.index import check_model, faiss_file
from tools.search.store import Store
from utils.errors import OptionError


@dataclass(frozen=True)
class Hit:
    """One result: its rank from 1, the similarity it was ranked by, both cosines, and the file."""

    rank: int
    score: float
    bge: float
    tse: float
    file: Path

    def asdict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "file": str(self.file)}


class Searcher:
    """An index with the model that made it.

    Args:
        approximate: search with FAISS in place of forming every inner product.

    Raises:
        OptionError: another model, an empty index, or one changed since FAISS was built.
    """

    def __init__(self, store: Store, encoder: Encoder, *, approximate: bool = False) -> None:
        check_model(store, encoder)
        self.store, self.encoder = store, encoder
        self.gallery = store.about.gallery
        self._engine: Engine
        self._vectors: Callable[[np.ndarray], np.ndarray]  # of some positions
        if approximate:
            with store.one_moment():
                ids, self.paths = store.images()
                file = faiss_file(store)
            self._engine = Faiss.read(file)
            self._vectors = lambda rows: store.vectors(ids[rows])
        else:
            _, self.paths, vectors = store.everything()
            self._engine = Exact(vectors)
            self._vectors = vectors.__getitem__
        if not self.paths:
            raise OptionError(f"{store.folder} holds no image that could be read")

    def search(self, texts: Sequence[str], top: int, similarity: str = SIMILARITIES[2]) -> list[list[Hit]]:
        """The `top` images for each sentence, by one of `SIMILARITIES`."""
        queries = self.encoder.texts(texts)
        found = self._engine.top(self.encoder.weigh(queries, similarity), top)
        return [self._rank(query, rows, top, similarity) for query, rows in zip(queries, found, strict=True)]

    def _rank(self, query: np.ndarray, found: np.ndarray, top: int, similarity: str) -> list[Hit]:
        """Rank what an engine has found by the exact vectors."""
        rows = np.sort(found)
        both = np.stack([self.encoder.weigh(query[None], name)[0] for name in SIMILARITIES])
        scores = self._vectors(rows) @ both.T  # (found, 3)
        by = scores[:, SIMILARITIES.index(similarity)]
        return [
            Hit(rank, float(by[n]), float(scores[n, 0]), float(scores[n, 1]), self.gallery / self.paths[rows[n]])
            for rank, n in enumerate(best_first(by, top), 1)
        ]
