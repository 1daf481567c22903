"""Linear layers at the speed of the processor's widest instructions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Whether float32 products on the CPU are left to oneDNN; without AVX-512 MKL is faster in training.
ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_SMALL = 20480  # numbers, up to which PyTorch convolves without oneDNN, and slowly


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, D) → (…, E) with (E, D) weights: `torch.nn.functional.linear` within rounding.

    PyTorch multiplies float32 matrices with MKL, which leaves half of an AMD processor's AVX-512 units unused (not of
    Intel's), but convolutions with oneDNN, which does not. A linear layer is a convolution by 1×1 over a picture of
    one column; dilated, so that PyTorch takes oneDNN on a single thread too, and of a 1×1 kernel that changes nothing.
    torch.compile is given the layer as it is: it fails where a convolution's rows vary from batch to batch. So is
    autocast, whose convolutions in float16 are some hundred times slower than its linear layers.
    """
    large = ONEDNN and x.is_cpu and x.dtype == torch.float32 and x.numel() > _SMALL
    if not large or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    column = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, D, rows, 1), channels last
    result = F.conv2d(column, weight[:, :, None, None], bias, dilation=2)
    return result.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
