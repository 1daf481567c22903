"""Gradients of a global batch, however it is divided among processes and into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from processor.state import TrainState
from processor.types import Embeddings, Encoder, PairBatch
from solver.objectives.base import EncodedBatch, NamedEmbeddings, PairTokens, TokenObjective
from solver.objectives.training import shape_or_type, sum_of
from utils.distributed import gather
from utils.errors import OptionError


@dataclass(frozen=True)
class Pairs:
    """A `PairBatch` of tensors only, without positions in the training split."""

    images: Tensor
    ids: Tensor
    pids: Tensor
    labels: None = None
    masked: None = None

    @property
    def pairs(self) -> Tensor:
        """Placeholder with as many entries as pids."""
        return torch.arange(len(self.pids))


class Encoded(NamedTuple):
    """Embeddings of this process's share of a batch, or of a part of it, and the rows of each token objective."""

    image: Embeddings
    text: Embeddings
    rows: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        return [*self.image.values(), *self.text.values(), *self.rows.values()]


class _Part(NamedTuple):
    """Some pairs of a batch; fields as in `PairBatch`."""

    images: Tensor
    ids: Tensor
    labels: Tensor | None
    masked: Tensor | None


def encode_in_parts(model: Encoder, batch: PairBatch, parts: int) -> tuple[Embeddings, Embeddings]:
    """Image and text embeddings of this process's share of a batch, without gradient, part by part."""
    encoded = _encode_in_parts(model, {}, batch, parts)
    return encoded.image, encoded.text


@torch.no_grad()
def _encode_in_parts(model: Encoder, objectives: dict[str, TokenObjective], batch: PairBatch, parts: int) -> Encoded:
    encoded = [_encode(model, objectives, part) for part in _parts(batch, parts)]
    return encoded[0] if len(encoded) == 1 else _concatenated(encoded)


def _encode(model: Encoder, objectives: dict[str, TokenObjective], part: _Part) -> Encoded:
    if not objectives:
        return Encoded(*model(part.images, part.ids), {})
    image, text, (image_tokens, text_tokens) = model.with_tokens(part.images, part.ids, part.masked)
    tokens = PairTokens(image_tokens.float(), text_tokens.float(), part.labels)
    with model.autocast(part.images.device):
        return Encoded(image, text, {name: objective(tokens) for name, objective in objectives.items()})


def _concatenated(encoded: Sequence[Encoded]) -> Encoded:
    return Encoded(*({name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*encoded)))


def backward(state: TrainState, batch: PairBatch, weight: Tensor, grad_accum: int) -> dict[str, Tensor]:
    """Accumulate the gradients of this process's share of the batch.

    With several parts gradients are cached (Gao et al., RepL4NLP 2021): all parts are encoded, the loss of the whole
    batch is differentiated with respect to the embeddings, then each part is encoded again and backpropagated.

    Args:
        weight: (B,) weights of the batch's pairs; replaced if the correspondence refines them in each step.

    Returns:
        The losses of the whole batch, whose sum is minimised.
    """
    objectives = state.loss.of(TokenObjective)
    if grad_accum == 1:
        part = _Part(batch.images, batch.ids, batch.labels, batch.masked)
        losses = _losses(state, _encode(state.model, objectives, part), batch, weight)
        state.scaler.scale(sum_of([*losses.values()])).backward()
        return {name: value.detach() for name, value in losses.items()}
    encoded = _encode_in_parts(state.model, objectives, batch, grad_accum)
    leaves = [rows.requires_grad_() for rows in encoded.tensors()]
    losses = _losses(state, encoded, batch, weight)
    state.scaler.scale(sum_of([*losses.values()])).backward()
    used = [n for n, rows in enumerate(leaves) if rows.grad is not None]
    gradients = zip(*(leaves[n].grad.chunk(grad_accum) for n in used), strict=True)  # type: ignore[union-attr]
    for part, gradient in zip(_parts(batch, grad_accum), gradients, strict=True):
        again = _encode(state.model, objectives, part).tensors()
        trained = [(again[n], own) for n, own in zip(used, gradient, strict=True) if again[n].requires_grad]
        if trained:  # a tower may be frozen
            torch.autograd.backward([rows for rows, _ in trained], [own for _, own in trained])
    return {name: value.detach() for name, value in losses.items()}


def _parts(batch: PairBatch, count: int) -> list[_Part]:
    """Split a batch into at most `count` parts."""
    images, ids = batch.images.chunk(count), batch.ids.chunk(count)
    labels, masked = (
        [None] * len(images) if column is None else column.chunk(count) for column in (batch.labels, batch.masked)
    )
    return [_Part(*columns) for columns in zip(images, ids, labels, masked, strict=True)]


def _losses(state: TrainState, share: Encoded, batch: PairBatch, weight: Tensor) -> dict[str, Tensor]:
    """The losses of the whole batch, given this process's encoded share."""
    image, text, rows = ({name: gather(value, len(batch.pairs)) for name, value in part.items()} for part in share)
    encoded = EncodedBatch(NamedEmbeddings(image), NamedEmbeddings(text), batch.pids, weight, rows)
    if state.correspondence.refines:
        with torch.no_grad():
            scores = state.loss.score(encoded)
            used = {name: scores[name] for name in state.loss.scores_for(state.correspondence.objective)}
            weight = state.correspondence.refine(batch.pairs, used, state.epoch)
        if not isinstance(weight, Tensor) or weight.shape != batch.pids.shape:  # another shape would be broadcast
            expected = f"refine must give {tuple(batch.pids.shape)} weights"
            raise OptionError(f"--division {state.correspondence.name}: {expected}, found {shape_or_type(weight)}")
        encoded = replace(encoded, weight=weight.to(batch.pids.device))
    return state.loss(encoded)
