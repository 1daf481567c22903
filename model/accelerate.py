"""Faster arithmetic for a finished model, applied from outside; results are equal up to rounding.

Modules keep their identity, names and weights; only their class is replaced by one with a different `forward`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.clip import Clip, VisionTransformer
from utils.layers import QuickGELU

M = TypeVar("M", bound=nn.Module)

# Whether oneDNN computes float32 products on the CPU; without AVX-512 MKL is faster in training.
ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_SMALL = 20480  # number of elements up to which PyTorch convolves without oneDNN, and slowly


def accelerate(model: M) -> M:
    """Replace layers that have a faster form, in place; instances of subclasses stay unchanged."""
    for module in model.modules():
        if faster := _FASTER.get(type(module)):
            module.__class__ = faster
    return model


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, D) → (…, E) with (E, D) weights: `torch.nn.functional.linear` within rounding.

    PyTorch multiplies float32 matrices with MKL, which leaves half of the AVX-512 units unused on AMD (not on Intel),
    but computes convolutions with oneDNN, which uses them all. A linear layer is a 1×1 convolution over an image with
    one column; with dilation, which doesn't affect a 1×1 kernel, PyTorch uses oneDNN even on a single thread.
    The plain layer is used under torch.compile, where convolutions with a varying number of rows fail, and under
    autocast, whose float16 convolutions are about a hundred times slower than its linear layers.
    """
    large = ONEDNN and x.is_cpu and x.dtype == torch.float32 and x.numel() > _SMALL
    if not large or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    column = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, D, rows, 1), channels last
    result = F.conv2d(column, weight[:, :, None, None], bias, dilation=2)
    return result.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


class FastLinear(nn.Linear):
    """`torch.nn.Linear` computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _ScaledSiLU(torch.autograd.Function):
    """SiLU(y)/1.702 of y = 1.702x: its derivative by x is SiLU's at y, so only y is saved and nothing is rescaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = 1.702 * x
        ctx.save_for_backward(y)
        return F.silu(y, inplace=not ctx.needs_input_grad[0]).div_(1.702)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, y)


class FastQuickGELU(QuickGELU):
    """QuickGELU in fewer passes over memory, saving less for the backward pass.

    torch.compile gets the plain layer, which it fuses. From this one, PyTorch 2.11 generates code that overwrites a
    tensor that the backward pass needs, so gradients are wrong.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.compiler.is_compiling() else _ScaledSiLU.apply(x)


class _VisionTransformer(VisionTransformer):
    proj: nn.Parameter

    def project(self, x: Tensor) -> Tensor:
        return linear(x, self.proj.to(x.dtype).T)


class _Clip(Clip):
    text_projection: nn.Parameter

    def project(self, x: Tensor) -> Tensor:
        return linear(x, self.text_projection.to(x.dtype).T)


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FastLinear,
    QuickGELU: FastQuickGELU,
    VisionTransformer: _VisionTransformer,
    Clip: _Clip,
}
