"""Operations, synchronisations and allocations of a training step and a scoring batch: the same on every machine.

A fast GPU computes a small operation in less time than Python needs to launch it, so the number of operations limits
throughput; and whenever Python waits for the device, the device then waits for Python.

`python -m benchmarks counting` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks import plain
from benchmarks.measure import count_flop
from benchmarks.plain import PlainModel, products
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import TINY, optimizer_arguments, random_batch, random_model, training_state
from datasets.loaders import Batch
from model.encoder import DualEncoder
from processor.epoch import train_epoch
from processor.scoring import score_pairs
from processor.settings import LoopSettings

Pass = Callable[[Sequence[Batch]], Any]
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}  # return a value or a data-dependent shape
_READS = {Tensor.cpu, Tensor.numpy, Tensor.tolist}  # copy to the host, without dispatching an operation on a CPU


@dataclass
class Counts:
    """Counters.

    Attributes:
        operations: ATen operations other than views.
        synchronisations: number of times that Python would wait for a GPU.
        allocated: bytes allocated for new tensors.
    """

    operations: int = 0
    synchronisations: int = 0
    allocated: int = 0


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts, host: Iterable[Tensor]) -> None:
        super().__init__()
        self.counts, self.host = counts, {_storage(tensor) for tensor in host}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        if operator.namespace == "aten" and not operator.is_view and not inputs & self.host:
            self.counts.operations += 1
            self.counts.synchronisations += _waits(operator, args)
            new = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(result)}
            self.counts.allocated += sum(size for storage, size in new.items() if storage not in inputs)
        return result


class _Reads(TorchFunctionMode):
    def __init__(self, counts: Counts, host: Iterable[Tensor]) -> None:
        super().__init__()
        self.counts, self.host = counts, {_storage(tensor) for tensor in host}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _READS and _storage(args[0]) not in self.host:
            self.counts.synchronisations += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def counting(host: Iterable[Tensor] = ()) -> Iterator[Counts]:
    """Count the operations in the block, except those on `host` tensors, which stay on the CPU."""
    counts, host = Counts(), list(host)
    with _Reads(counts, host), _Operations(counts, host):
        yield counts


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _waits(operator: Any, args: Any) -> bool:
    name = operator.overloadpacket.__name__
    by_mask = name in ("index", "index_put_") and any(part.dtype == torch.bool for part in _tensors(args[1]))
    return name in _WAITS or by_mask


def counted(setting: Setting) -> Rows:
    """Counts per additional batch in a pass of a tiny CLIP, plain and ours, in float32 on the CPU."""
    cpu = torch.device("cpu")
    model, batch = random_model(TINY, cpu), random_batch(TINY, setting.batch, cpu)
    optimizer = plain.build_optimizer(*optimizer_arguments(model))
    return [
        {"what": f"{what}, {way}"} | marginal_cost(run_pass, batch, optimizer)
        for what, ways in passes(model, optimizer, len(batch.pids)).items()
        for way, run_pass in ways.items()
    ]


def passes(model: DualEncoder, optimizer: Optimizer, pairs: int) -> dict[str, dict[str, Pass]]:
    """Training and scoring over batches of `pairs` pairs, plain and ours; `optimizer` is for the plain model."""
    slow, weight, state = PlainModel(model), np.ones(pairs, np.float32), training_state(model)
    settings = LoopSettings(log_period=100)
    return {
        "training step": {
            "plain": lambda batches: plain.train_epoch(slow, optimizer, batches, weight),
            "ours": lambda batches: train_epoch(state, batches, weight, settings),
        },
        "scoring batch": {
            "plain": lambda batches: plain.score_pairs(slow, batches, pairs),
            "ours": lambda batches: score_pairs(model, state.loss, batches, pairs),
        },
    }


def marginal_cost(run_pass: Pass, batch: Batch, plain_optimizer: Optimizer) -> dict[str, int | float]:
    """Difference between a pass over two batches and one over a single batch."""
    measured = []
    with products(mkl=True):  # as on a machine without AVX-512
        run_pass([batch])  # let the optimizer allocate its moments
        steps = [state["step"] for state in plain_optimizer.state.values()]  # stay on the CPU
        for count in (1, 2):
            with counting(host=[batch.pairs, *steps]) as counts:
                run_pass([batch] * count)
            measured.append(counts)
        flop = count_flop(lambda: run_pass([batch]))
    one, two = measured
    return {
        "operations": two.operations - one.operations,
        "synchronisations": two.synchronisations - one.synchronisations,
        "allocated, MB": (two.allocated - one.allocated) / 1e6,
        "GFLOP": flop / 1e9,
    }
