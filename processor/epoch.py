"""One training epoch over the pairs, weighted by the correspondence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from processor.cuda_graphs import Recorded
from processor.settings import LoopSettings
from processor.state import TrainState
from processor.step import Pairs, backward
from processor.types import PairBatch, PairBatches
from solver.objectives.training import sum_of
from utils.devices import peak_memory_gb
from utils.distributed import average_gradients, sum_gradients
from utils.errors import NotFiniteError
from utils.log import logger, progress


@dataclass(frozen=True)
class EpochResult:
    """Results of an epoch.

    Attributes:
        loss: the total loss, averaged over steps.
        losses: its parts, by embedding for pairwise objectives, by name for others.
        skipped_steps: steps that the loss scaler skipped because gradients overflowed.
        data_wait_share: share of time that the loop waited for the next batch: an upper bound on what a faster loader
            could save, as the GPU may have been busy meanwhile.
        peak_memory_gb: see `utils.devices.peak_memory_gb`.
    """

    loss: float
    losses: dict[str, float]
    skipped_steps: int
    seconds: float
    pairs_per_second: float
    data_wait_share: float
    peak_memory_gb: float

    def record(self) -> dict[str, float]:
        """The record for metrics.jsonl, with parts of the loss as "bge_loss"."""
        values = asdict(self)
        parts = {f"{name.lower()}_loss": value for name, value in values.pop("losses").items()}
        return {"loss": values.pop("loss"), **parts, **values}


class _Timed:
    """Batches, with the seconds spent waiting for them."""

    def __init__(self, batches: PairBatches) -> None:
        self.batches, self.waited = batches, 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PairBatch]:
        start = time.perf_counter()
        for batch in self.batches:
            self.waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


def train_epoch(state: TrainState, batches: PairBatches, weight: np.ndarray, settings: LoopSettings) -> EpochResult:
    """Train on every batch once.

    Args:
        weight: (N,) weight of each pair.

    Raises:
        NotFiniteError: a loss is NaN or infinite or, without a loss scaler, a gradient; detected at the next log line.
    """
    state.model.train()
    state.loss.train()
    pair_weight = torch.from_numpy(weight)
    start, pairs, skipped = time.perf_counter(), 0, 0
    sums: dict[str, Tensor] = {}
    mean: dict[str, float] = {}
    timed = _Timed(batches)
    differentiate = _recorded(state) if settings.cuda_graphs else partial(_eager, state, settings.grad_accum)
    unchecked: list[tuple[Tensor, Tensor, Tensor]] = []  # pairs, loss and gradients' size of each step since logging
    for step, batch in enumerate(progress(timed, "training"), start=1):
        pair_weight = pair_weight.to(batch.pids.device)  # in the first step
        batch_weight = pair_weight[batch.pairs.to(pair_weight.device, non_blocking=True)]
        state.optimizer.zero_grad(set_to_none=True)
        losses = differentiate(batch, batch_weight)
        size = _update(state)
        sums = {name: sums.get(name, 0) + loss for name, loss in losses.items()}
        pairs += len(batch.pairs)
        unchecked.append((batch.pairs, sum_of([*losses.values()]), size))
        if step % settings.log_period == 0 or step == len(timed):
            skipped += _check(unchecked, step, scaled=state.scaler.is_enabled())
            unchecked.clear()
            mean = dict(zip(sums, (torch.stack([*sums.values()]) / step).tolist(), strict=True))
            parts = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
            logger.info(
                "  step %d/%d: loss %.3f (%s), averages over the epoch so far",
                step,
                len(timed),
                sum(mean.values()),
                parts,
            )
            if skipped:
                logger.info("  %d steps skipped by the loss scaler, its scale is %g", skipped, state.scaler.get_scale())
    seconds = time.perf_counter() - start
    peak = peak_memory_gb(pair_weight.device)
    return EpochResult(sum(mean.values()), mean, skipped, seconds, pairs / seconds, timed.waited / seconds, peak)


def _eager(state: TrainState, grad_accum: int, batch: PairBatch, weight: Tensor) -> dict[str, Tensor]:
    return backward(state, batch, weight, grad_accum)


def _recorded(state: TrainState) -> Callable[[PairBatch, Tensor], dict[str, Tensor]]:
    """`backward` of whole batches as CUDA graphs, one per batch shape."""
    recorded = Recorded(
        lambda images, ids, pids, weight: backward(state, Pairs(images, ids, pids), weight, 1),
        [*state.model.parameters(), *state.loss.parameters()],
        [*state.model.buffers(), *state.loss.buffers()],
    )
    return lambda batch, weight: recorded(batch.images, batch.ids, batch.pids, weight)


def _update(state: TrainState) -> Tensor:
    """Take an optimizer step; returns the `magnitude` of the gradients."""
    sum_gradients([*state.model.parameters(), *state.loss.shared_parameters()])
    average_gradients(state.loss.whole_parameters())
    parameters = (parameter for group in state.optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    size = magnitude(gradients)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return size


def magnitude(tensors: list[Tensor]) -> Tensor:
    """The sum of absolute values, in float32 or wider: not finite if any value isn't.

    The maximum is slow to compute on a CPU, and a sum of squares overflows sooner.
    """
    norms = []
    for dtype in {tensor.dtype for tensor in tensors}:  # one fused call each
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        wide = torch.promote_types(dtype, torch.float32)
        norms += torch._foreach_norm(group, 1, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).sum() if norms else torch.zeros(())


def _check(unchecked: Sequence[tuple[Tensor, Tensor, Tensor]], step: int, *, scaled: bool) -> int:
    """Check the steps up to `step`; returns how many overflowed and were skipped by the scaler.

    Raises:
        NotFiniteError: a loss is NaN or infinite or, unless `scaled`, a gradient.
    """
    losses = torch.stack([loss for _, loss, _ in unchecked]).tolist()
    gradients = torch.stack([gradient for _, _, gradient in unchecked]).tolist()
    for number, (pairs, loss, gradient) in enumerate(
        zip((pairs for pairs, _, _ in unchecked), losses, gradients), start=step - len(unchecked) + 1
    ):
        if not math.isfinite(loss) or not (scaled or math.isfinite(gradient)):
            what = "a gradient" if math.isfinite(loss) else "the loss"
            raise NotFiniteError(f"step {number}: {what} is NaN or infinite, with pairs {_listed(pairs)}")
    return sum(not math.isfinite(gradient) for gradient in gradients)


def _listed(pairs: Tensor) -> str:
    return ", ".join(map(str, pairs.tolist()))
