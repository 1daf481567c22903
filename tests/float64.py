"""Arithmetic in float64, for comparisons over more than a step or two.

In float32, rounding sooner or later changes a maximum, a hinge or a token selection, and training diverges from there,
at a step that depends on the CPU. In float64 it doesn't: after three epochs of training in two ways, weights differ by
5e-15, relative to their total change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from datasets.augmentation import _per_channel

# Orders of magnitude above rounding errors and below the effect of bugs.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@contextmanager
def in_float64() -> Iterator[None]:
    """Create models and batches in float64 within the context, also where float32 is requested."""
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    _per_channel.cache_clear()  # cached in the other dtype
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)
        _per_channel.cache_clear()
