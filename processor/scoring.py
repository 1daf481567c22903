"""The scoring pass that feeds the correspondence: every training pair's loss on each trained embedding (paper, 3.2)."""

from __future__ import annotations

import numpy as np
import torch

from processor.step import encode_in_parts
from processor.types import Encoder, PairBatches
from solver.objectives.training import TrainingLoss
from utils.distributed import gather
from utils.log import progress
from utils.ranks import world_size


@torch.no_grad()
def score_pairs(
    model: Encoder, loss: TrainingLoss, batches: PairBatches, pairs: int, *, grad_accum: int = 1
) -> dict[str, np.ndarray]:
    """Per-pair losses in evaluation mode.

    Args:
        batches: all pairs once, in random order: a pair's loss depends on the others of its batch. Of several
            processes each has some of the batches.
        pairs: N.
        grad_accum: parts in which a batch is encoded.

    Returns:
        By trained embedding (N,) losses, float32; NaN for a pair that was in no batch.
    """
    model.eval()
    scored = []
    for batch in progress(batches, "scoring"):
        scores = loss.score(*encode_in_parts(model, batch, grad_accum), batch.pids)
        scored.append((batch.pairs, torch.stack([*scores.values()])))
    result = torch.full((len(loss.trained), pairs), float("nan"))
    for positions, losses in scored:
        result[:, positions] = losses.cpu()
    for part in gather(result[None], world_size()):  # (processes, embeddings, N)
        result = torch.where(result.isnan(), part, result)
    return dict(zip(loss.trained, result.numpy(), strict=True))
