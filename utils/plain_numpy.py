"""Reads NumPy scalars in checkpoints as Python numbers, without NumPy's own unpickling.

Training code often saves its best score as a `numpy.float64`, which `torch.load(weights_only=True)` refuses.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np

_CODES = frozenset(np.dtype(kind).str[1:] for kind in np.typecodes["AllInteger"] + "?efd")


class _PlainType:
    """Replaces `numpy.dtype`: integers, bool and floats of up to 64 bits."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _CODES:
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype[{code!r:.20}] is not a plain number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


def _number(kind: _PlainType, content: bytes) -> bool | int | float:
    """Replaces `numpy.core.multiarray.scalar`."""
    (number,) = np.frombuffer(content, np.dtype(kind.order + kind.code))
    return number.item()


# For `torch.serialization.safe_globals`; NumPy 1 and 2 have different names for the same function.
PLAIN_NUMBERS: list[Callable | tuple[Callable, str]] = [
    (_PlainType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]
