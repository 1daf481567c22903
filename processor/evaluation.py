"""Evaluation: encode a split once, then rank by each embedding and by their mean similarity (paper, 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from prettytable import PrettyTable
from torch import Tensor
from torch.nn import functional as F

from processor.metrics import RetrievalMetrics, queries_at_a_time
from processor.reranking import KReciprocal
from processor.settings import RerankSettings
from processor.types import Embedder, Embeddings, Encodable, Encoder, EvaluationData
from solver.objectives.training import sum_of
from utils.distributed import broadcast_from_main, gather
from utils.errors import NotFiniteError
from utils.log import progress

Metrics = dict[str, dict[str, float]]


def similarity_names(names: Iterable[str], trained: Sequence[str] = ()) -> list[str]:
    """Names of the similarities of some embeddings: one each and, for several, the fused one, such as "BGE+TSE".

    If several but not all are trained, their mean comes before the fused one.
    """
    names = list(names)
    means = ([name for name in names if name in trained], names)
    return [*names, *dict.fromkeys("+".join(group) for group in means if len(group) > 1)]


class Encoded(NamedTuple):
    """A split's unit-length embeddings on the device, by name: (images, D) and (captions, D)."""

    image: Embeddings
    text: Embeddings

    @property
    def fused(self) -> str:
        """Name of the fused similarity."""
        return similarity_names(self.image)[-1]

    @property
    def device(self) -> torch.device:
        """Device of the embeddings."""
        return next(iter(self.text.values())).device

    def similarity(self, captions: slice | Sequence[int]) -> dict[str, Tensor]:
        """(c, images) cosines of some captions with all images, by name."""
        return _similarities({name: part[captions] for name, part in self.text.items()}, self.image)


def _similarities(query: Embeddings, gallery: Embeddings, trained: Sequence[str] = ()) -> dict[str, Tensor]:
    """(q, gallery) cosines and their means, by `similarity_names`."""
    similarities = {name: query[name] @ gallery[name].T for name in gallery}
    for mean in similarity_names(gallery, trained)[len(gallery) :]:
        cosines = [similarities[name] for name in mean.split("+")]
        similarities[mean] = sum_of(cosines).div_(len(cosines))
    return similarities


@torch.no_grad()
def encode(model: Embedder, data: Encodable) -> Encoded:
    """Encode every image and caption once; among several processes, each encodes a share and receives all embeddings.

    Raises:
        NotFiniteError: an embedding is NaN or infinite.
    """
    model.eval()
    images = [model.encode_image(batch) for batch in progress(data.image_batches(), "images")]
    texts, positions = [], []
    for position, ids in progress(data.text_batches(), "captions"):
        texts.append(model.encode_text(ids))
        positions.append(position)
    count = len(data.caption_pids)
    order = gather(torch.cat(positions), count).argsort()
    image = {name: _all_rows([batch[name] for batch in images], len(data.image_pids)) for name in images[0]}
    text = {name: _all_rows([batch[name] for batch in texts], count) for name in texts[0]}
    text = {name: rows[order.to(rows.device)] for name, rows in text.items()}
    if not all(torch.isfinite(part).all() for part in (*image.values(), *text.values())):
        raise NotFiniteError("the model's embeddings are NaN or infinite: its weights are corrupted or diverged")
    return Encoded(image, text)


def _all_rows(batches: Sequence[Tensor], count: int) -> Tensor:
    """This process's batches → the `count` normalised rows of all processes."""
    return F.normalize(gather(torch.cat(list(batches)), count), dim=1)


def evaluate(
    model: Encoder,
    data: EvaluationData,
    *,
    image_to_text: bool = False,
    rerank: RerankSettings | None = None,
    trained: Sequence[str] = (),
) -> tuple[Metrics, Encoded]:
    """Retrieval metrics in percent for each of `similarity_names`, and the embeddings.

    Similarities are computed in chunks of queries, so memory doesn't grow with queries times gallery.

    Args:
        image_to_text: rank captions for every image instead of images for every caption.
        rerank: also evaluate the re-ranked fused similarity.
        trained: also evaluate the mean of these embeddings' cosines.
    """
    encoded = encode(model, data)
    ranking = Ranking(encoded, image_to_text, rerank, trained)
    return broadcast_from_main(lambda: rank(ranking, data.caption_pids, data.image_pids)), encoded


def rank(ranking: Ranking, caption_pids: np.ndarray, image_pids: np.ndarray) -> Metrics:
    """The metrics of `evaluate` for a ranking, given (captions,) and (images,) pids."""
    pids = (image_pids, caption_pids) if ranking.image_to_text else (caption_pids, image_pids)
    query_pids, gallery_pids = (torch.from_numpy(part).to(ranking.encoded.device) for part in pids)
    metrics = {name: RetrievalMetrics(gallery_pids) for name in ranking.names}
    for rows, similarities in ranking.similarities():
        for name, similarity in similarities.items():
            metrics[name].add(similarity, query_pids[rows])
    return {name: part.result() for name, part in metrics.items()}


@dataclass(frozen=True)
class Ranking:
    """Embeddings and how to rank them.

    Attributes:
        image_to_text: rank captions for every image instead of images for every caption.
        rerank: also rank by the re-ranked fused similarity.
        trained: also rank by the mean of these embeddings' cosines.
    """

    encoded: Encoded
    image_to_text: bool = False
    rerank: RerankSettings | None = None
    trained: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Names of its similarities."""
        reranked = [] if self.rerank is None else [f"{self.encoded.fused} re-ranked"]
        return similarity_names(self.encoded.image, self.trained) + reranked

    def similarities(self) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield the slice of a chunk of queries, and its (q, gallery) similarities by name."""
        encoded = self.encoded
        query, gallery = (encoded.image, encoded.text) if self.image_to_text else (encoded.text, encoded.image)
        reranked = None if self.rerank is None else KReciprocal(joined(gallery), self.rerank)
        queries, count = (len(next(iter(part.values()))) for part in (query, gallery))
        chunk = queries_at_a_time(count)
        for start in range(0, queries, chunk):
            rows = slice(start, start + chunk)
            similarities = _similarities({name: part[rows] for name, part in query.items()}, gallery, self.trained)
            if reranked is not None:
                similarities[self.names[-1]] = reranked.similarity(similarities[encoded.fused])
            yield rows, similarities


def joined(embeddings: Embeddings) -> Tensor:
    """Concatenate E unit embeddings into (B, sum of widths) unit vectors; inner products are the mean of E cosines."""
    return torch.cat([*embeddings.values()], dim=1) / len(embeddings) ** 0.5


def table(metrics: Metrics, title: str) -> str:
    """Format metrics as a table."""
    columns = list(next(iter(metrics.values())))
    formatted = PrettyTable(["", *columns], title=title, align="r")
    formatted.align[""] = "l"
    formatted.add_rows([[name, *(f"{row[column]:.2f}" for column in columns)] for name, row in metrics.items()])
    return formatted.get_string()
