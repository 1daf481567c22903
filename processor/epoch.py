"""One training epoch over the pairs that CCD labelled."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from processor.step import backward
from processor.types import DualEncoder, PairBatch
from solver.losses import LossSettings
from utils.distributed import sum_gradients
from utils.errors import NotFiniteError
from utils.log import logger, progress
from utils.program import peak_memory_gb


@dataclass(frozen=True)
class EpochResult:
    """Means per step of the batch losses, how fast it went, and what it took.

    Attributes:
        loss: the sum of those that are trained.
        skipped_steps: those that the loss scaler left out because gradients overflowed.
        data_wait_share: of the seconds, those in which the loop stood still for the next batch. A GPU may have been
            busy meanwhile, so it is the most that a faster loader could save.
        peak_memory_gb: as `utils.program.peak_memory_gb`.
    """

    loss: float
    bge_loss: float
    tse_loss: float
    skipped_steps: int
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
    grad_accum: int = 1,
) -> EpochResult:
    """Train on every batch once.

    Args:
        scaler: of the loss, enabled for float16 autocast only; it leaves out steps whose gradients overflow.
        label: (N,) l̂ in {0, 1}: which pairs count.
        trained: "BGE+TSE", or "BGE" for the loss on BGE alone.
        log_period: steps between two lines of the log; only then the device is waited for.
        grad_accum: parts in which a batch is encoded, to save memory; its loss is that of the whole batch all the same.

    Raises:
        NotFiniteError: a loss, or without a scaler a gradient, is not finite; seen when the next line is logged.
    """
    model.train()
    label = torch.from_numpy(label)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    start, pairs, skipped = time.perf_counter(), 0, 0
    sums, parts_trained = torch.zeros(2), len(trained.split("+"))
    timed = _Timed(batches)
    unseen: list[tuple[Tensor, Tensor, Tensor]] = []  # since the last line: a step's pairs, loss and largest gradient
    for step, batch in enumerate(progress(timed, "training"), start=1):
        device = batch.images.device
        label, sums = label.to(device), sums.to(device)  # in the first step
        weight = label[batch.pairs.to(device, non_blocking=True)]
        optimizer.zero_grad(set_to_none=True)
        losses = backward(model, scaler, batch, weight, loss_name, settings, parts_trained, grad_accum)
        sum_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        largest = get_total_norm(gradients, math.inf)  # the sum of squares may exceed float16 where no gradient does
        scaler.step(optimizer)
        scaler.update()
        sums += losses
        pairs += len(batch.pairs)
        unseen.append((batch.pairs, losses[:parts_trained].sum(), largest))
        if step % log_period == 0 or step == len(batches):
            skipped += _check(unseen, step, scaled=scaler.is_enabled())
            unseen.clear()
            mean = (sums / step).tolist()
            loss = sum(mean[:parts_trained])
            logger.info("  step %d/%d: loss %.3f (BGE %.3f, TSE %.3f)", step, len(batches), loss, *mean)
            if skipped:
                logger.info("  %d steps left out by the loss scaler, its scale is %g", skipped, scaler.get_scale())
    seconds = time.perf_counter() - start
    waited = timed.waited / seconds
    return EpochResult(loss, *mean, skipped, seconds, pairs / seconds, waited, peak_memory_gb(sums.device))


def _check(unseen: Sequence[tuple[Tensor, Tensor, Tensor]], step: int, *, scaled: bool) -> int:
    """How many of the steps up to `step` overflowed and were left out by the scaler.

    Raises:
        NotFiniteError: a loss, or without a scaler (`scaled`) a gradient, is not finite.
    """
    losses = torch.stack([loss for _, loss, _ in unseen]).tolist()
    gradients = torch.stack([gradient for _, _, gradient in unseen]).tolist()
    for number, (pairs, loss, gradient) in enumerate(
        zip((pairs for pairs, _, _ in unseen), losses, gradients), start=step - len(unseen) + 1
    ):
        if not math.isfinite(loss) or not (scaled or math.isfinite(gradient)):
            what = "a gradient" if math.isfinite(loss) else "the loss"
            raise NotFiniteError(f"step {number}: {what} is not a finite number, with pairs {_listed(pairs)}")
    return sum(not math.isfinite(gradient) for gradient in gradients)


def _listed(pairs: Tensor) -> str:
    return ", ".join(map(str, pairs.tolist()))
