"""Steps recorded as CUDA graphs: a fast GPU need not wait for Python to launch one kernel after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

Outputs = dict[str, Tensor]
LENGTH_STEP = 16  # captions are padded to a multiple of it: every length is recorded by itself


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Outputs


class Recorded:
    """A function of tensors, recorded at the first call with tensors of a shape and replayed at the others.

    It must read, besides its arguments, only tensors that stay in their place, as weights do, and never wait for the
    GPU. The recording launches the same kernels, so what it returns and adds to gradients is the same as without.

    Args:
        parameters: whose gradients it computes; those of an earlier call are overwritten.
        buffers: that it changes, as a BatchNorm's.
    """

    def __init__(
        self, function: Callable[..., Outputs], parameters: Sequence[Parameter] = (), buffers: Sequence[Tensor] = ()
    ) -> None:
        self._function, self._parameters, self._buffers = function, parameters, buffers
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}
        self._gradients: list[tuple[Parameter, Tensor]] | None = None  # one place for the gradients of all graphs

    def __call__(self, *inputs: Tensor) -> Outputs:
        """What the function returns for tensors on the GPU."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            with torch.cuda.device(inputs[0].device):  # whose streams are meant, with --device cuda:1 not the default
                self._graphs[shapes] = self._record([tensor.clone() for tensor in inputs])
        graph, places, outputs = self._graphs[shapes]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._place_gradients()
        graph.replay()
        return {name: value.clone() for name, value in outputs.items()}

    def _record(self, inputs: list[Tensor]) -> _Graph:
        self._warm_up(inputs)
        self._place_gradients()
        graph, pool = torch.cuda.CUDAGraph(), next((graph.graph.pool() for graph in self._graphs.values()), None)
        # Only this thread is held to what a recording allows: another one pins the memory of the next batches.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            for _, gradient in self._gradients or ():
                gradient.zero_()
            outputs = self._function(*inputs)
        return _Graph(graph, inputs, outputs)

    def _warm_up(self, inputs: list[Tensor]) -> None:
        """One call that does not count: libraries choose their kernels, and it shows which parameters are trained."""
        before = [buffer.clone() for buffer in self._buffers]
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for parameter in self._parameters:
                parameter.grad = None
            self._function(*inputs)
        current.wait_stream(aside)
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.copy_(value)
        if self._gradients is None:
            self._gradients = [(p, p.grad) for p in self._parameters if p.grad is not None]

    def _place_gradients(self) -> None:
        for parameter, gradient in self._gradients or ():
            parameter.grad = gradient
