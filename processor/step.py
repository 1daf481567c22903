"""The gradients of one global batch, whichever process and whichever part of it encodes what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp import GradScaler

from processor.types import DualEncoder, PairBatch
from solver.losses import LossSettings, cosine_similarity, per_pair_loss, reduce_loss
from utils.distributed import gather


def encode_in_parts(model: DualEncoder, batch: PairBatch, parts: int) -> list[Tensor]:
    """Image BGE and TSE, text BGE and TSE of this process's share of a batch, without gradient, a part at a time."""
    with torch.no_grad():
        encoded = [model(images, ids) for images, ids in _parts(batch, parts)]
    return [torch.cat(rows) for rows in zip(*((*image, *text) for image, text in encoded), strict=True)]


def backward(
    model: DualEncoder,
    scaler: GradScaler,
    batch: PairBatch,
    weight: Tensor,
    loss: str,
    settings: LossSettings,
    trained: int,
    grad_accum: int,
) -> Tensor:
    """Add the gradients that this process's share of the batch has part in to its parameters'.

    In more than one part the gradients are cached (Gao et al., RepL4NLP 2021): all parts are encoded, the loss of the
    whole batch is differentiated down to the embeddings, then each part is encoded again to carry that on.

    Args:
        weight: (B,) l̂ of the batch's pairs.
        trained: 2 for the sum of both losses, 1 for that on BGE alone.

    Returns:
        (2,) the losses of the whole batch on BGE and on TSE.
    """
    if grad_accum == 1:
        image, text = model(batch.images, batch.ids)
        losses = _losses((*image, *text), batch, weight, loss, settings)
        scaler.scale(sum(losses[:trained])).backward()
        return torch.stack(losses).detach()
    embeddings = [rows.requires_grad_() for rows in encode_in_parts(model, batch, grad_accum)]
    losses = _losses(embeddings, batch, weight, loss, settings)
    scaler.scale(sum(losses[:trained])).backward()
    kinds = [kind for kind, rows in enumerate(embeddings) if rows.grad is not None]
    gradients = zip(*(embeddings[kind].grad.chunk(grad_accum) for kind in kinds), strict=True)
    for part, gradient in zip(_parts(batch, grad_accum), gradients, strict=True):
        image, text = model(*part)
        torch.autograd.backward([(*image, *text)[kind] for kind in kinds], gradient)
    return torch.stack(losses).detach()


def _parts(batch: PairBatch, count: int) -> list[tuple[Tensor, Tensor]]:
    """Images and ids of at most `count` parts of a batch."""
    return list(zip(batch.images.chunk(count), batch.ids.chunk(count), strict=True))


def _losses(
    embeddings: Sequence[Tensor], batch: PairBatch, weight: Tensor, loss: str, settings: LossSettings
) -> list[Tensor]:
    """This process's embeddings → the losses of the whole batch on BGE and on TSE."""
    image_bge, image_tse, text_bge, text_tse = (gather(rows, len(batch.pairs)) for rows in embeddings)
    return [
        reduce_loss(loss, per_pair_loss(loss, cosine_similarity(i, t), batch.pids, settings), weight)
        for i, t in ((image_bge, text_bge), (image_tse, text_tse))
    ]
