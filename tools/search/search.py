"""Searching an index: sentences in, ranked images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from processor.reranking import KReciprocal
from processor.settings import RerankSettings
from tools.search.encode import Encoder
from tools.search.engines import Faiss, best_first
from tools.search.files import FileStore
from tools.search.index import check_model, faiss_file
from tools.search.store import Store
from utils.errors import OptionError

_MIN_RERANKED = 1000


@dataclass(frozen=True)
class Hit:
    """One result: rank from 1, the similarity it is ranked by, each embedding's cosine, and the file."""

    rank: int
    score: float
    scores: dict[str, float]
    file: Path

    def asdict(self) -> dict[str, object]:
        """Convert to JSON values."""
        scores = {name.lower(): score for name, score in self.scores.items()}
        return {"rank": self.rank, "score": self.score, **scores, "file": str(self.file)}


class Searcher:
    """An index and the model that built it.

    Args:
        approximate: search with FAISS instead of exhaustively.

    Raises:
        OptionError: another model, an empty index, or an outdated FAISS index.
    """

    def __init__(self, store: Store, encoder: Encoder, *, approximate: bool = False) -> None:
        check_model(store, encoder)
        self.store, self.encoder = store, encoder
        self.gallery = store.about.gallery
        if not len(store):
            raise OptionError(f"{store.name} contains no readable image")
        if approximate and isinstance(store, FileStore):
            store.engine = Faiss.read(faiss_file(store))

    def search(
        self, texts: Sequence[str], top: int, similarity: str, rerank: RerankSettings | None = None
    ) -> list[list[Hit]]:
        """The `top` images for each sentence, by one of the encoder's similarities.

        Args:
            rerank: re-rank the nearest thousand, or the nearest `top` if that is more.
        """
        queries = self.encoder.texts(texts)
        count = max(top, _MIN_RERANKED) if rerank else top
        nearest = self.store.nearest(self.encoder.weigh(queries, similarity), count)
        ranked = zip(queries, nearest, strict=True)
        return [self._rank(query, *candidates, similarity, rerank)[:top] for query, candidates in ranked]

    def _rank(
        self, query: np.ndarray, paths: list[Path], vectors: np.ndarray, similarity: str, rerank: RerankSettings | None
    ) -> list[Hit]:
        """Rank the candidates by their exact vectors."""
        names = self.encoder.similarities
        scores = vectors @ np.stack([self.encoder.weigh(query[None], name)[0] for name in names]).T  # (paths, names)
        ranking = scores[:, names.index(similarity)]
        if rerank:
            gallery, cosine = (torch.from_numpy(part).to(self.encoder.device) for part in (vectors, ranking))
            ranking = KReciprocal(gallery, rerank).similarity(cosine[None])[0].cpu().numpy()
        return [
            Hit(
                rank,
                float(ranking[n]),
                {name: float(score) for name, score in zip(self.encoder.widths, scores[n], strict=False)},
                self.gallery / paths[n],
            )
            for rank, n in enumerate(best_first(ranking, len(ranking)), 1)
        ]
