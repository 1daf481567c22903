"""Training steps captured as CUDA graphs, so that a fast GPU needn't wait for Python to launch each kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

Outputs = dict[str, Tensor]
LENGTH_STEP = 16  # captions are padded to a multiple of this, because each length is captured separately


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Outputs


class Recorded:
    """A function of tensors, captured at its first call with each input shape and replayed afterwards.

    Besides its arguments it may only read tensors at fixed addresses, such as weights, and it must never wait for the
    GPU. The graph launches the same kernels, so outputs and gradients are the same.

    Args:
        parameters: parameters whose gradients it computes; those of an earlier call are overwritten.
        buffers: buffers that it changes, such as a BatchNorm's.
    """

    def __init__(
        self, function: Callable[..., Outputs], parameters: Sequence[Parameter] = (), buffers: Sequence[Tensor] = ()
    ) -> None:
        self._function, self._parameters, self._buffers = function, parameters, buffers
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}
        self._gradients: list[tuple[Parameter, Tensor]] | None = None  # gradients share memory across graphs

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the function on tensors on the GPU."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            with torch.cuda.device(inputs[0].device):  # for its streams: with --device cuda:1 it isn't the default
                self._graphs[shapes] = self._record([tensor.clone() for tensor in inputs])
        graph, static_inputs, outputs = self._graphs[shapes]
        for static, tensor in zip(static_inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        self._place_gradients()
        graph.replay()
        return {name: value.clone() for name, value in outputs.items()}

    def _record(self, inputs: list[Tensor]) -> _Graph:
        self._warm_up(inputs)
        self._place_gradients()
        graph, pool = torch.cuda.CUDAGraph(), next((graph.graph.pool() for graph in self._graphs.values()), None)
        # Capture restricts only this thread's calls: another thread pins the memory of the next batches.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            for _, gradient in self._gradients or ():
                gradient.zero_()
            outputs = self._function(*inputs)
        return _Graph(graph, inputs, outputs)

    def _warm_up(self, inputs: list[Tensor]) -> None:
        """Call once, for libraries to choose their kernels and to learn which parameters get gradients."""
        before = [buffer.clone() for buffer in self._buffers]
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for parameter in self._parameters:
                parameter.grad = None
            self._function(*inputs)
        current.wait_stream(side)
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.copy_(value)
        if self._gradients is None:
            self._gradients = [(p, p.grad) for p in self._parameters if p.grad is not None]

    def _place_gradients(self) -> None:
        for parameter, gradient in self._gradients or ():
            parameter.grad = gradient
