"""An emulated device: PyTorch's fake tensors have a device and a shape, but no data.

As on a GPU, an operation on tensors of two devices raises, except with a CPU scalar. Values read from tensors are made
up: True, 1 for a CPU tensor, else 0, and a few rows if the shape depends on data. Autograd needs a driver, so
the backward pass only assigns a gradient to each leaf that it would reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.augmentation import _per_channel

_FEW = 2
aten: Any = torch.ops.aten


class _FakeResults(TorchDispatchMode):
    """Replaces the results of operations that depend on data."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = operator.overloadpacket, kwargs or {}
        if packet is torch.ops.prim.device:  # half of all operations, and twice as fast here
            return args[0].fake_device
        if packet is aten._local_scalar_dense:
            return _number(args[0])
        if packet is aten.nonzero:
            return args[0].new_zeros((_FEW, args[0].dim()), dtype=torch.long)
        if packet is aten.bincount:
            return args[0].new_zeros(max(_FEW, kwargs.get("minlength", 0)), dtype=torch.long)
        if packet is aten.repeat_interleave:
            return args[0].new_zeros(_FEW, dtype=torch.long)
        if packet is aten.index and any(part is not None and part.dtype == torch.bool for part in args[1]):
            raise NotImplementedError("indexing by a mask waits for the device")
        return operator(*args, **kwargs)


def _number(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    one = tensor.device.type == "cpu"
    return float(one) if tensor.is_floating_point() else int(one)


def _backward(tensors: Tensor | Sequence[Tensor], *_: Any) -> None:
    """Assign gradients to all leaves that autograd would reach."""
    nodes = [tensor.grad_fn for tensor in ([tensors] if isinstance(tensors, Tensor) else tensors)]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaf.grad = torch.empty_like(leaf)
        nodes += [following for following, _ in node.next_functions]


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:  # noqa: ARG001
    """Replaces `nn.Module._apply`, which swaps tensors in place: this fails for fake ones."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


def works(device: str) -> bool:
    """Whether PyTorch can index a fake tensor of the device, for which it must be built, e.g. for MPS on macOS."""
    try:
        with FakeTensorMode():
            torch.empty(2, device=device)[0]
    except (RuntimeError, AssertionError):
        return False
    return True


@contextmanager
def fake(device: str) -> Iterator[torch.device]:
    """Make tensors fake within the context; those created without a device are on the CPU."""
    _per_channel.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(Tensor, "backward", _backward)
        patch.setattr(torch.autograd, "backward", _backward)
        patch.setattr(Tensor, "tolist", lambda tensor: np.ones(tensor.shape).tolist())
        patch.setattr(Tensor, "numpy", lambda tensor: np.ones(tensor.shape, np.float32))
        with FakeTensorMode(allow_non_fake_inputs=True), _FakeResults():
            yield torch.device(device)
    _per_channel.cache_clear()
