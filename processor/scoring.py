"""The scoring pass that feeds the correspondence: every training pair's loss on each trained embedding (paper, 3.2)."""

from __future__ import annotations

import numpy as np
import torch

from processor.step import encode_in_parts
from processor.types import Encoder, PairBatches
from solver.objectives.base import EncodedBatch, NamedEmbeddings
from solver.objectives.training import TrainingLoss
from utils.distributed import gather
from utils.log import progress
from utils.ranks import world_size


@torch.no_grad()
def score_pairs(
    model: Encoder, loss: TrainingLoss, batches: PairBatches, pairs: int, *, grad_accum: int = 1
) -> dict[str, np.ndarray]:
    """What a correspondence judges pairs by, in evaluation mode.

    Args:
        batches: all pairs once, in random order: a pair's loss depends on the others of its batch. Of several
            processes each has some of the batches.
        pairs: N.
        grad_accum: parts in which a batch is encoded.

    Returns:
        By the names of `loss.scores` (N,) float32, as the trained embeddings' losses; NaN for a pair that was in no
        batch.
    """
    model.eval()
    scored = []
    for batch in progress(batches, "scoring"):
        image, text = map(NamedEmbeddings, encode_in_parts(model, batch, grad_accum))
        everyone = torch.ones(len(batch.pairs), device=batch.pids.device)
        scores = loss.score(EncodedBatch(image, text, batch.pids, everyone))
        scored.append((batch.pairs, torch.stack([scores[name] for name in loss.scores])))
    result = torch.full((len(loss.scores), pairs), float("nan"))
    for positions, losses in scored:
        result[:, positions] = losses.float().cpu()
    for part in gather(result[None], world_size()):  # (processes, scores, N)
        result = torch.where(result.isnan(), part, result)
    return dict(zip(loss.scores, result.numpy(), strict=True))
