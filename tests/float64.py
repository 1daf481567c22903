"""Arithmetic in float64, for comparisons of more than a step or two.

In float32 a rounding sooner or later tips a maximum, a hinge or the choice of a token, and what follows is another
training; which step that is depends on the processor. In float64 it does not happen: three epochs of training two
ways end 5e-15 apart, in terms of the way that the weights have moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from datasets.augmentation import _per_channel

# Rounding is below it by orders of magnitude, and whatever is computed wrongly above.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@contextmanager
def in_float64() -> Iterator[None]:
    """Within, models and batches are made in float64, and what asks for float32 gets float64."""
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    _per_channel.cache_clear()  # of the other type
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)
        _per_channel.cache_clear()
