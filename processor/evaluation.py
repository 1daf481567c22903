"""Evaluation: encode a split once, rank by BGE, TSE and both (paper, 3.4: S = (S_bge + S_tse) / 2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from prettytable import PrettyTable
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from processor.metrics import retrieval_metrics
from processor.types import DualEncoder, EvaluationData
from utils.errors import UserError

Metrics = dict[str, dict[str, float]]
SIMILARITIES = ("BGE", "TSE", "BGE+TSE")


@torch.no_grad()
def similarities(model: DualEncoder, data: EvaluationData) -> dict[str, Tensor]:
    """Encode every image and caption once.

    Returns:
        For each of `SIMILARITIES` the (captions, images) cosine similarities, on the device.

    Raises:
        UserError: an embedding is not finite.
    """
    model.eval()
    images = [model.encode_image(batch) for batch in _bar(data.image_batches(), "images")]
    texts, positions = [], []
    for position, ids in _bar(data.text_batches(), "captions"):
        texts.append(model.encode_text(ids))
        positions.append(position)
    order = torch.cat(positions).argsort().to(images[0][0].device)
    image_bge, image_tse = (F.normalize(torch.cat(part), dim=1) for part in zip(*images, strict=True))
    text_bge, text_tse = (F.normalize(torch.cat(part)[order], dim=1) for part in zip(*texts, strict=True))
    bge, tse = text_bge @ image_bge.T, text_tse @ image_tse.T
    fused = (bge + tse) / 2
    if not torch.isfinite(fused).all():
        raise UserError("the model gives embeddings that are not finite numbers: its weights are damaged or diverged")
    return {"BGE": bge, "TSE": tse, "BGE+TSE": fused}


def _bar(batches: Iterable, what: str) -> Iterable:
    return tqdm(batches, what, leave=False, disable=None, unit="batch")


def evaluate(model: DualEncoder, data: EvaluationData, *, image_to_text: bool = False) -> tuple[Metrics, Tensor]:
    """Retrieval metrics in percent for each of `SIMILARITIES`, and the (captions, images) fused similarity.

    Args:
        image_to_text: rank captions for every image in place of images for every caption.
    """
    found = similarities(model, data)
    fused = found["BGE+TSE"]
    query, gallery = (torch.from_numpy(pids).to(fused.device) for pids in (data.caption_pids, data.image_pids))
    if image_to_text:
        metrics = {name: retrieval_metrics(s.T, gallery, query) for name, s in found.items()}
    else:
        metrics = {name: retrieval_metrics(s, query, gallery) for name, s in found.items()}
    return metrics, fused


def table(metrics: Metrics, title: str) -> str:
    """The metrics as a table to print."""
    columns = list(next(iter(metrics.values())))
    shown = PrettyTable(["", *columns], title=title, align="r")
    shown.align[""] = "l"
    shown.add_rows([[name, *(f"{row[column]:.2f}" for column in columns)] for name, row in metrics.items()])
    return shown.get_string()
