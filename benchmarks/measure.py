"""Interleaved timing, FLOP, bytes kept for the backward pass, and the machine and its peak rate."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.accelerate import linear
from utils.run_folder import git_revision

Way = Callable[[], Any]  # one of several implementations of the same work


def seconds_of(way: Way, device: torch.device) -> float:
    """Wall time in seconds; on a single CPU thread CPU time, which other load hardly affects."""
    clock = time.process_time if _one_thread(device) else time.perf_counter
    start = clock()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _one_thread(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() == 1


def interleaved(ways: Mapping[str, Way], repeats: int, device: torch.device) -> dict[str, float]:
    """Median `seconds_of` each implementation, run alternately after an untimed warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            elapsed = seconds_of(way, device)
            if turn:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_flop(way: Way) -> int:
    """FLOP of all matrix products, in the backward pass too; attention counts as its two products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def count_kept_bytes(way: Way, model: torch.nn.Module) -> int:
    """Bytes, without parameters, that autograd keeps for the backward pass of the forward pass `way`."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        result = way()
    del result
    return sum(saved.values())


@functools.cache
def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of large square matrix products, the best of several.

    On a CPU without instructions for `dtype` the largest would take seconds and are skipped.
    """
    best = 0.0
    for side in (8192,) if device.type == "cuda" else (512, 2048):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        for _ in range(8):
            seconds = interleaved({"product": lambda a=a, b=b: linear(a, b)}, 1, device)["product"]
            best = max(best, 2 * side**3 / seconds)
        if seconds > 0.01:
            break
    return best


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and software of the measurement."""
    name = f"{os.cpu_count()} cores, {_processor()}"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}; {name}"
    return {
        "machine": name,
        "device": str(device),
        "clock": "processor time, one thread" if _one_thread(device) else f"wall, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        "date": date.today().isoformat(),
        "git_revision": git_revision(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
