"""The scoring pass that feeds the correspondence: every training pair's loss on each trained embedding (paper, 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from processor.cuda_graphs import Recorded
from processor.settings import LoopSettings
from processor.step import Pairs, encode_in_parts
from processor.types import Encoder, PairBatch, PairBatches
from solver.objectives.base import EncodedBatch, NamedEmbeddings
from solver.objectives.training import TrainingLoss
from utils.distributed import gather
from utils.log import progress
from utils.ranks import world_size


@torch.no_grad()
def score_pairs(
    model: Encoder, loss: TrainingLoss, batches: PairBatches, pairs: int, settings: LoopSettings | None = None
) -> dict[str, np.ndarray]:
    """Compute the scores from which a correspondence decides, in evaluation mode.

    Args:
        batches: all pairs once, in random order, as a pair's loss depends on the others in its batch. Each of several
            processes has some of the batches.
        pairs: N.

    Returns:
        (N,) float32 for each of `loss.scores`, e.g. the trained embeddings' losses; NaN for pairs in no batch.
    """
    model.eval()
    loss.eval()
    settings = settings or LoopSettings()
    score = _recorded(model, loss) if settings.cuda_graphs else partial(_score, model, loss, settings.grad_accum)
    scored = []
    for batch in progress(batches, "scoring"):
        scores = score(batch)
        scored.append((batch.pairs, torch.stack([scores[name] for name in loss.scores])))
    result = torch.full((len(loss.scores), pairs), float("nan"))
    if scored:  # a process may have no batch
        positions, losses = zip(*scored)
        result[:, torch.cat(positions)] = torch.cat(losses, dim=1).float().cpu()  # the only wait for the device
    for part in gather(result[None], world_size()):  # (processes, scores, N)
        result = torch.where(result.isnan(), part, result)
    return dict(zip(loss.scores, result.numpy(), strict=True))


def _score(model: Encoder, loss: TrainingLoss, grad_accum: int, batch: PairBatch) -> dict[str, Tensor]:
    image, text = map(NamedEmbeddings, encode_in_parts(model, batch, grad_accum))
    weight = torch.ones(len(batch.pids), device=batch.pids.device)
    return loss.score(EncodedBatch(image, text, batch.pids, weight))


def _recorded(model: Encoder, loss: TrainingLoss) -> Callable[[PairBatch], dict[str, Tensor]]:
    """`_score` of whole batches as CUDA graphs."""
    recorded = Recorded(lambda images, ids, pids: _score(model, loss, 1, Pairs(images, ids, pids)))
    return lambda batch: recorded(batch.images, batch.ids, batch.pids)
