"""The published implementation's numbers (`tests/golden`) and the weights they were computed with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def weights(which: str) -> dict[str, torch.Tensor]:
    """The golden weights of "clip" or "rde", under the published names.

    One normal draw a tensor in sorted name order, scaled by what the tensor is; the seed is listed beside the shapes.
    """
    listed = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
    rng = np.random.RandomState(listed["seeds"][which])
    state = {}
    for name, shape in sorted(listed[which].items()):
        v = rng.standard_normal(shape).astype(np.float32) if shape else np.float32(rng.standard_normal())
        norm = ".ln_" in name or name.startswith("ln_") or ".bns." in name
        if name.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            value = torch.from_numpy(1 + 0.1 * np.abs(v))
        elif name.endswith("running_mean"):
            value = torch.from_numpy(0.1 * v)
        elif norm and name.endswith("weight"):
            value = torch.from_numpy(1 + 0.1 * v)
        else:
            value = torch.from_numpy((0.02 if name.endswith("bias") else 0.05) * v)
        state[name] = value
    return state


def numbers(name: str) -> dict[str, np.ndarray]:
    """The arrays of `golden/<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def case(name: str, number: int) -> dict[str, np.ndarray]:
    """The arrays of one case of `golden/<name>.npz`, without the case's prefix."""
    prefix = f"case{number}."
    return {key.removeprefix(prefix): value for key, value in numbers(name).items() if key.startswith(prefix)}
