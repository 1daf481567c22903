"""What the processes of one training exchange: rows with their gradients, sums, decisions, whose turn it is.

Every process computes the loss of the global batch, of which it encoded a share. Without a launcher nothing here does
anything.
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

_STALLED = timedelta(minutes=10)  # for what all processes do at once; one that ended is noticed long before
# For what one process does while the others wait: decoding a large data set from a slow disk takes hours, and would
# start again if it were broken off.
_PATIENT = timedelta(days=1)
_waiting_room = []  # the group for the latter


def connect() -> None:
    """Connect to the other processes; tensors on NVIDIA's GPUs go over NCCL, others over gloo.

    Raises:
        OptionError: they don't come, or the network is not set up for it.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_STALLED)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"the {world_size()} processes can't connect at {master()}: {brief(error)}") from None
    _waiting_room[:] = [distributed.new_group(backend="gloo", timeout=_PATIENT)]


def disconnect() -> None:
    """Disconnect when all processes are done."""
    wait_for_all()
    _waiting_room.clear()
    distributed.destroy_process_group()


def wait_for_all() -> None:
    """A barrier: continue when all processes have arrived."""
    if distributed.is_initialized():
        distributed.all_reduce(torch.zeros(1), group=_waiting_room[0])


def broadcast_from_main(decide: Callable[[], Any]) -> Any:
    """What `decide` returns in the main process, in every process; the others wait for it and don't call it."""
    if not distributed.is_initialized():
        return decide()
    decision = [decide() if is_main() else None]
    distributed.broadcast_object_list(decision, group=_waiting_room[0])
    return decision[0]


@contextmanager
def main_process_first() -> Iterator[None]:
    """One process of every machine goes through the block before the others, who then find what it has left there."""
    if local_rank():
        wait_for_all()
    yield
    if not local_rank():
        wait_for_all()


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward each takes its own rows' gradient.

    That is the whole gradient, because every process computes the same loss of the same rows.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        ctx.own = share(count)
        padded = own.new_zeros(-(-count // world_size()), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        distributed.all_gather(parts, padded)
        return torch.cat([part[: len(range(count)[share(count, of)])] for of, part in enumerate(parts)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own], None


def gather(own: Tensor, count: int) -> Tensor:
    """This process's share of `count` rows → all of them, in order, with gradient."""
    return _Gather.apply(own, count) if distributed.is_initialized() else own


class _Sum(torch.autograd.Function):
    """The sum over all processes; what each did with it counts for all, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # noqa: ARG004
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


def summed(own: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient."""
    return _Sum.apply(own) if distributed.is_initialized() else own


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients, each process's of its share of the batch, to those of the batch, in float32 at least."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.cat([gradient.flatten().float() for gradient in gradients])
    distributed.all_reduce(total)
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
