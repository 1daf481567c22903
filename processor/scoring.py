"""The scoring pass that feeds CCD: every training pair's loss, once on BGE and once on TSE (paper, 3.2)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from processor.step import encode_in_parts
from processor.types import DualEncoder, PairBatch
from solver.losses import LossSettings, cosine_similarity, per_pair_loss
from utils.distributed import gather
from utils.log import progress
from utils.ranks import world_size


@torch.no_grad()
def score_pairs(
    model: DualEncoder,
    batches: Collection[PairBatch],
    pairs: int,
    loss: str,
    settings: LossSettings,
    *,
    grad_accum: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Per-pair losses in evaluation mode.

    Args:
        batches: all pairs once, in random order: a pair's loss depends on the others of its batch. Of several
            processes each has some of the batches.
        pairs: N.
        grad_accum: parts in which a batch is encoded.

    Returns:
        (N,) BGE and (N,) TSE losses, float32; NaN for a pair that was in no batch.
    """
    model.eval()
    scored = []
    for batch in progress(batches, "scoring"):
        image_bge, image_tse, text_bge, text_tse = encode_in_parts(model, batch, grad_accum)
        losses = [
            per_pair_loss(loss, cosine_similarity(i, t), batch.pids, settings)
            for i, t in ((image_bge, text_bge), (image_tse, text_tse))
        ]
        scored.append((batch.pairs, torch.stack(losses)))
    result = torch.full((2, pairs), float("nan"))
    for positions, losses in scored:
        result[:, positions] = losses.cpu()
    for part in gather(result[None], world_size()):  # (processes, 2, N)
        result = torch.where(result.isnan(), part, result)
    return result[0].numpy(), result[1].numpy()
