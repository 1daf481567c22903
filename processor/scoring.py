"""The scoring pass that feeds CCD: every training pair's loss, once on BGE and once on TSE (paper, 3.2)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from tqdm import tqdm

from processor.types import DualEncoder, PairBatch
from solver.losses import LossSettings, cosine_similarity, per_pair_loss


@torch.no_grad()
def score_pairs(
    model: DualEncoder, batches: Collection[PairBatch], pairs: int, loss: str, settings: LossSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Per-pair losses in evaluation mode.

    Args:
        batches: all pairs once, in random order: a pair's loss depends on the others of its batch.
        pairs: N.

    Returns:
        (N,) BGE and (N,) TSE losses, float32; NaN for a pair that was in no batch.
    """
    model.eval()
    scored = []
    for batch in tqdm(batches, "scoring", leave=False, disable=None):
        image, text = model(batch.images, batch.ids)
        losses = [
            per_pair_loss(loss, cosine_similarity(i, t), batch.pids, settings) for i, t in zip(image, text, strict=True)
        ]
        scored.append((batch.pairs, torch.stack(losses)))
    result = torch.full((2, pairs), float("nan"))
    for positions, losses in scored:
        result[:, positions] = losses.cpu()
    return result[0].numpy(), result[1].numpy()
