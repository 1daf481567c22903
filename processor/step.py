"""The gradients of one global batch, whichever process and whichever part of it encodes what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from processor.types import Embeddings, Encoder, PairBatch
from solver.objectives.base import EncodedBatch, NamedEmbeddings
from solver.objectives.training import TrainingLoss, sum_of
from utils.distributed import gather


def encode_in_parts(model: Encoder, batch: PairBatch, parts: int) -> tuple[Embeddings, Embeddings]:
    """Image and text embeddings of this process's share of a batch, without gradient, a part at a time."""
    with torch.no_grad():
        encoded = [model(images, ids) for images, ids in _parts(batch, parts)]
    image, text = (_joined([pair[modality] for pair in encoded]) for modality in (0, 1))
    return image, text


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def backward(
    model: Encoder, loss: TrainingLoss, scaler: GradScaler, batch: PairBatch, weight: Tensor, grad_accum: int
) -> dict[str, Tensor]:
    """Add to the parameters' gradients those of this process's share of the batch.

    In more than one part the gradients are cached (Gao et al., RepL4NLP 2021): all parts are encoded, the loss of the
    whole batch is differentiated down to the embeddings, then each part is encoded again to carry that on.

    Args:
        weight: (B,) how much each of the batch's pairs counts.

    Returns:
        The losses of the whole batch, whose sum is trained.
    """
    if grad_accum == 1:
        losses = _losses(loss, *model(batch.images, batch.ids), batch, weight)
        scaler.scale(sum_of([*losses.values()])).backward()
        return {name: value.detach() for name, value in losses.items()}
    image, text = encode_in_parts(model, batch, grad_accum)
    leaves = [rows.requires_grad_() for rows in (*image.values(), *text.values())]
    losses = _losses(loss, image, text, batch, weight)
    scaler.scale(sum_of([*losses.values()])).backward()
    used = [n for n, rows in enumerate(leaves) if rows.grad is not None]
    gradients = zip(*(leaves[n].grad.chunk(grad_accum) for n in used), strict=True)  # type: ignore[union-attr]
    for part, gradient in zip(_parts(batch, grad_accum), gradients, strict=True):
        image, text = model(*part)
        again = (*image.values(), *text.values())
        trained = [(again[n], own) for n, own in zip(used, gradient, strict=True) if again[n].requires_grad]
        if trained:  # a tower may be frozen
            torch.autograd.backward([rows for rows, _ in trained], [own for _, own in trained])
    return {name: value.detach() for name, value in losses.items()}


def _parts(batch: PairBatch, count: int) -> list[tuple[Tensor, Tensor]]:
    """Images and ids of at most `count` parts of a batch."""
    return list(zip(batch.images.chunk(count), batch.ids.chunk(count), strict=True))


def _losses(
    loss: TrainingLoss, image: Embeddings, text: Embeddings, batch: PairBatch, weight: Tensor
) -> dict[str, Tensor]:
    """This process's embeddings → the losses of the whole batch."""
    image, text = ({name: gather(rows, len(batch.pairs)) for name, rows in part.items()} for part in (image, text))
    return loss(EncodedBatch(NamedEmbeddings(image), NamedEmbeddings(text), batch.pids, weight))
