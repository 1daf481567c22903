"""Evaluation: encode a split once, rank by BGE, TSE and both (paper, 3.4: S = (S_bge + S_tse) / 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from prettytable import PrettyTable
from torch import Tensor
from torch.nn import functional as F

from processor.metrics import RetrievalMetrics, queries_at_a_time
from processor.types import DualEncoder, EvaluationData
from utils.distributed import decided_once, gather
from utils.errors import NotFiniteError
from utils.log import progress

Metrics = dict[str, dict[str, float]]
SIMILARITIES = ("BGE", "TSE", "BGE+TSE")


class Encoded(NamedTuple):
    """A split's unit-length embeddings on the device: (images, D) and (captions, D) of BGE, then of TSE."""

    image: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor]

    def similarity(self, captions: slice | Sequence[int]) -> dict[str, Tensor]:
        """For each of `SIMILARITIES` the cosines of some captions with all images, (c, images)."""
        return _similarity([part[captions] for part in self.text], self.image)


def _similarity(query: Sequence[Tensor], gallery: Sequence[Tensor]) -> dict[str, Tensor]:
    bge, tse = (q @ g.T for q, g in zip(query, gallery, strict=True))
    return dict(zip(SIMILARITIES, (bge, tse, (bge + tse).div_(2)), strict=True))


@torch.no_grad()
def encode(model: DualEncoder, data: EvaluationData) -> Encoded:
    """Encode every image and caption once; of several processes each encodes a share and gets all.

    Raises:
        NotFiniteError: an embedding is not finite.
    """
    model.eval()
    images = [model.encode_image(batch) for batch in progress(data.image_batches(), "images")]
    texts, positions = [], []
    for position, ids in progress(data.text_batches(), "captions"):
        texts.append(model.encode_text(ids))
        positions.append(position)
    count = len(data.caption_pids)
    order = gather(torch.cat(positions), count).argsort().to(images[0][0].device)
    image = tuple(
        F.normalize(gather(torch.cat(part), len(data.image_pids)), dim=1) for part in zip(*images, strict=True)
    )
    text = tuple(F.normalize(gather(torch.cat(part), count)[order], dim=1) for part in zip(*texts, strict=True))
    if not all(torch.isfinite(part).all() for part in (*image, *text)):
        raise NotFiniteError("the model's embeddings are not finite numbers: its weights are damaged or diverged")
    return Encoded(image, text)


def evaluate(model: DualEncoder, data: EvaluationData, *, image_to_text: bool = False) -> tuple[Metrics, Encoded]:
    """Retrieval metrics in percent for each of `SIMILARITIES`, and the embeddings they come from.

    Similarities are formed for some queries at a time: the memory does not grow with queries times gallery.

    Args:
        image_to_text: rank captions for every image in place of images for every caption.
    """
    encoded = encode(model, data)
    pids = data.caption_pids, data.image_pids
    return decided_once(lambda: rank(encoded, *pids, image_to_text=image_to_text)), encoded


def rank(encoded: Encoded, caption_pids: np.ndarray, image_pids: np.ndarray, *, image_to_text: bool = False) -> Metrics:
    """`evaluate`'s metrics of embeddings, (captions,) and (images,) pids."""
    query, gallery = (encoded.image, encoded.text) if image_to_text else (encoded.text, encoded.image)
    pids = (image_pids, caption_pids) if image_to_text else (caption_pids, image_pids)
    query_pids, gallery_pids = (torch.from_numpy(part).to(query[0].device) for part in pids)
    metrics = {name: RetrievalMetrics(gallery_pids) for name in SIMILARITIES}
    chunk = queries_at_a_time(len(gallery_pids))
    for *part, part_pids in zip(*(whole.split(chunk) for whole in (*query, query_pids)), strict=True):
        for name, similarity in _similarity(part, gallery).items():
            metrics[name].add(similarity, part_pids)
    return {name: part.result() for name, part in metrics.items()}


def table(metrics: Metrics, title: str) -> str:
    """The metrics as a table to print."""
    columns = list(next(iter(metrics.values())))
    shown = PrettyTable(["", *columns], title=title, align="r")
    shown.align[""] = "l"
    shown.add_rows([[name, *(f"{row[column]:.2f}" for column in columns)] for name, row in metrics.items()])
    return shown.get_string()
