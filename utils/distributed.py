"""Communication between the processes of a training run: gathering, sums, decisions, barriers.

Every process encodes a share of the global batch and computes the loss of all of it. Without a launcher all functions
are no-ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from utils.errors import OptionError, brief
from utils.ranks import is_main, local_rank, master, share, world_size

_COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # for collectives; a process that ended is noticed much sooner
# Timeout while one process works and the others wait: decoding a large data set from a slow disk can take hours, and
# would have to start over if interrupted.
_WAITING_TIMEOUT = timedelta(days=1)
_waiting_group = []  # the process group with the longer timeout


def connect() -> None:
    """Connect to the other processes; tensors on NVIDIA GPUs use NCCL, others gloo.

    Raises:
        OptionError: they don't connect, or the network isn't set up for it.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"the {world_size()} processes can't connect at {master()}: {brief(error)}") from None
    _waiting_group[:] = [distributed.new_group(backend="gloo", timeout=_WAITING_TIMEOUT)]


def disconnect() -> None:
    """Disconnect when all processes are done."""
    wait_for_all()
    _waiting_group.clear()
    distributed.destroy_process_group()


def wait_for_all() -> None:
    """Barrier: wait until all processes have arrived."""
    if distributed.is_initialized():
        distributed.all_reduce(torch.zeros(1), group=_waiting_group[0])


def broadcast_from_main(decide: Callable[[], Any]) -> Any:
    """Call `decide` in the main process and return its result in all processes."""
    if not distributed.is_initialized():
        return decide()
    decision = [decide() if is_main() else None]
    distributed.broadcast_object_list(decision, group=_waiting_group[0])
    return decision[0]


@contextmanager
def main_process_first() -> Iterator[None]:
    """One process per machine runs the block first; the others then find its results on disk."""
    if local_rank():
        wait_for_all()
    yield
    if not local_rank():
        wait_for_all()


class _Gather(torch.autograd.Function):
    """All-gather of rows; in the backward pass each process takes the gradient of its local rows.

    That is the full gradient, because every process computes the same loss from the same rows.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, count: int) -> Tensor:
        ctx.rows = share(count)
        padded = local.new_zeros(-(-count // world_size()), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        distributed.all_gather(parts, padded)
        return torch.cat([part[: len(range(count)[share(count, number)])] for number, part in enumerate(parts)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rows], None


def gather(local: Tensor, count: int) -> Tensor:
    """This process's share of `count` rows → all rows, in order, with gradient."""
    return _Gather.apply(local, count) if distributed.is_initialized() else local


class _Sum(torch.autograd.Function):
    """All-reduce sum; every process uses the result, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # noqa: ARG004
        total = local.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


def summed(local: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient."""
    return _Sum.apply(local) if distributed.is_initialized() else local


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the processes' gradients, each of its share of the batch, in at least float32.

    Parameters without a gradient in some processes count as 0 there; those without one in any keep none.
    """
    if not distributed.is_initialized():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:  # the same in every process
        return
    uses = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    distributed.all_reduce(uses)  # on the CPU, so that reading it doesn't wait for a GPU
    used = [parameter for parameter, count in zip(trained, uses.tolist(), strict=True) if count]
    if not used:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
    total = torch.cat([gradient.flatten().float() for gradient in gradients])
    distributed.all_reduce(total)
    parts = total.split([gradient.numel() for gradient in gradients])
    for parameter, gradient, part in zip(used, gradients, parts, strict=True):
        parameter.grad = gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the processes' gradients, each of the whole batch: they differ if objectives draw random numbers."""
    if not distributed.is_initialized():
        return
    parameters = [*parameters]
    sum_gradients(parameters)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= world_size()
