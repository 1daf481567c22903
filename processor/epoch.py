"""One training epoch over the pairs that CCD labelled."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
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
from utils.program import peak_memory_gb


@dataclass(frozen=True)
class EpochResult:
    """Means per step of the batch losses, how fast it went, and what it took.

    Attributes:
        loss: the sum of those that are trained.
        data_wait_share: of the seconds, those in which the loop stood still for the next batch. A GPU may have been
            busy meanwhile, so it is the most that a faster loader could save.
        peak_memory_gb: as `utils.program.peak_memory_gb`.
    """

    loss: float
    bge_loss: float
    tse_loss: float
    seconds: float
    pairs_per_second: float
    data_wait_share: float
    peak_memory_gb: float

    asdict = asdict


class _Timed:
    """Batches, and the seconds that were spent on waiting for them."""

    def __init__(self, batches: Collection[PairBatch]) -> None:
        self.batches, self.waited = batches, 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PairBatch]:
        start = time.perf_counter()
        for batch in self.batches:
            self.waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


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
    timed = _Timed(batches)
    for step, batch in enumerate(tqdm(timed, "training", leave=False, disable=None), start=1):
        device = batch.images.device
        label, sums = label.to(device), sums.to(device)  # in the first step
        weight = label[batch.pairs.to(device, non_blocking=True)]
        image, text = model(batch.images, batch.ids)
        parts = [
            reduce_loss(loss_name, per_pair_loss(loss_name, cosine_similarity(i, t), batch.pids, settings), weight)
            for i, t in zip(image, text, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(sum(parts[:parts_trained])).backward()
        scaler.step(optimizer)
        scaler.update()
        sums += torch.stack(parts).detach()
        pairs += len(batch.pairs)
        if step % log_period == 0 or step == len(batches):
            mean = (sums / step).tolist()
            loss = sum(mean[:parts_trained])
            if not np.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {step}; try a smaller --lr")
            logger.info("  step %d/%d: loss %.3f (BGE %.3f, TSE %.3f)", step, len(batches), loss, *mean)
    seconds = time.perf_counter() - start
    return EpochResult(loss, *mean, seconds, pairs / seconds, timed.waited / seconds, peak_memory_gb(sums.device))
