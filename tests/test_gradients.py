"""Gradients of several processes, here threads, are combined as in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from processor.epoch import _update
from solver.objectives.base import Objective, PairTokens, PairwiseObjective, Sizes, TokenObjective
from solver.objectives.training import TrainingLoss
from utils import distributed

PROCESSES = 3


class _Collectives:
    """`torch.distributed` between threads."""

    def __init__(self) -> None:
        self._all, self._tensors = threading.Barrier(PROCESSES, timeout=10), []

    def is_initialized(self) -> bool:
        return True

    def all_reduce(self, tensor: Tensor) -> None:
        self._tensors.append(tensor)
        self._all.wait()
        total = torch.stack(self._tensors).sum(dim=0)
        self._all.wait()
        self._tensors.clear()
        tensor.copy_(total)
        self._all.wait()


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Runs a function in every process, given its rank."""
    monkeypatch.setattr(distributed, "distributed", _Collectives())
    monkeypatch.setattr(distributed, "world_size", lambda: PROCESSES)

    def run(work: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(PROCESSES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def parameters(values: list[float | None]) -> list[nn.Parameter]:
    """One parameter per value, filled with zeros, whose gradient has it everywhere; None for no gradient."""
    made = [nn.Parameter(torch.zeros(size + 1)) for size in range(len(values))]
    for parameter, value in zip(made, values, strict=True):
        parameter.grad = None if value is None else torch.full_like(parameter, value)
    return made


def test_gradients_of_parameters_that_some_processes_do_not_use_are_summed_to_them(in_processes):
    every = [parameters([1, None, 2, None]), parameters([None, 10, 20, None]), parameters([100, None, 200, None])]
    in_processes(lambda rank: distributed.sum_gradients(every[rank]))
    for own in every:
        assert [p.grad.unique().tolist() for p in own if p.grad is not None] == [[101], [10], [222]]
        assert own[3].grad is None, "an unused parameter, which the optimizer skips"


def test_processes_without_any_gradient_agree_too(in_processes):
    every = [parameters([None, None]) for _ in range(PROCESSES)]
    in_processes(lambda rank: distributed.average_gradients([*every[rank]]))
    in_processes(lambda _: distributed.average_gradients([]))
    assert all(parameter.grad is None for own in every for parameter in own)


class _Tokens(TokenObjective):
    def __init__(self) -> None:
        super().__init__(None, Sizes({}, 1))
        self.layer = nn.Linear(1, 1)

    def forward(self, tokens: PairTokens) -> Tensor:
        return self.layer(tokens.image)


class _Whole(Objective):
    def __init__(self) -> None:
        super().__init__(None, Sizes({}, 1))
        self.layer = nn.Linear(1, 1)


class _Scaled(PairwiseObjective):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def test_an_update_sums_gradients_of_shares_and_averages_those_of_the_whole_batch(in_processes):
    """An objective's differ between processes if it draws random numbers, and its parameters must stay the same."""
    found: dict[int, dict[str, float]] = {}

    def step(rank: int) -> None:
        model, loss = nn.Linear(1, 1), TrainingLoss({"t": _Tokens(), "w": _Whole(), "s": _Scaled()}, ["BGE"])
        named = {**dict(model.named_parameters()), **dict(loss.named_parameters())}
        for parameter in named.values():
            parameter.data.zero_()
            parameter.grad = torch.full_like(parameter, rank)
        optimizer, scaler = torch.optim.SGD(named.values(), lr=1.0), GradScaler(enabled=False)
        state: Any = SimpleNamespace(model=model, loss=loss, optimizer=optimizer, scaler=scaler)
        _update(state)
        found[rank] = {name: -parameter.item() for name, parameter in named.items()}

    in_processes(step)
    of_tokens = {"objectives.t.layer.weight": 3, "objectives.t.layer.bias": 3}
    of_others = dict.fromkeys(("objectives.w.layer.weight", "objectives.w.layer.bias", "objectives.s.scale"), 1)
    assert [*found.values()] == [{"weight": 3, "bias": 3, **of_tokens, **of_others}] * PROCESSES
