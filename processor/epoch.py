"""One training epoch over the pairs that CCD labelled."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from tqdm import tqdm

from processor.types import DualEncoder, PairBatch
from solver.losses import LossSettings, cosine_similarity, per_pair_loss, reduce_loss
from utils.errors import UserError
from utils.log import logger


@dataclass(frozen=True)
class EpochResult:
    """Means per step of the batch losses, and how fast it went. `loss` is the sum of those that are trained."""

    loss: float
    bge_loss: float
    tse_loss: float
    seconds: float
    pairs_per_second: float

    asdict = asdict


def train_epoch(
    model: DualEncoder,
    optimizer: Optimizer,
    scaler: GradScaler,
    batches: Collection[PairBatch],
    label: np.ndarray,
    loss_name: str,
    settings: LossSettings,
    *,
    trained: str,
    log_period: int,
) -> EpochResult:
    """Train on every batch once.

    Args:
        scaler: of the loss, enabled for float16 autocast only; it leaves out steps whose gradients overflow.
        label: (N,) l̂ in {0, 1}: which pairs count.
        trained: "BGE+TSE", or "BGE" for the loss on BGE alone.
        log_period: steps between two lines of the log; only then the device is waited for.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    model.train()
    label = torch.from_numpy(label)
    start, pairs = time.perf_counter(), 0
    sums, parts_trained = torch.zeros(2), len(trained.split("+"))
    for step, batch in enumerate(tqdm(batches, "training", leave=False, disable=None), start=1):
        weight = label[batch.pairs].to(batch.images.device)
        image, text = model(batch.images, batch.ids)
        parts = [
            reduce_loss(loss_name, per_pair_loss(loss_name, cosine_similarity(i, t), batch.pids, settings), weight)
            for i, t in zip(image, text, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(sum(parts[:parts_trained])).backward()
        scaler.step(optimizer)
        scaler.update()
        sums = sums.to(weight.device) + torch.stack(parts).detach()
        pairs += len(batch.pairs)
        if step % log_period == 0 or step == len(batches):
            mean = (sums / step).tolist()
            loss = sum(mean[:parts_trained])
            if not np.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {step}; try a smaller --lr")
            logger.info("  step %d/%d: loss %.3f (BGE %.3f, TSE %.3f)", step, len(batches), loss, *mean)
    seconds = time.perf_counter() - start
    return EpochResult(loss, *mean, seconds, pairs / seconds)
