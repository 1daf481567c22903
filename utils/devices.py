"""Devices: selection, capabilities, memory use."""

from __future__ import annotations

import math
import platform
import re
import sys
from pathlib import Path

import torch

from utils.errors import OptionError, brief
from utils.ranks import launched, local_rank


def choose_device(name: str) -> torch.device:
    """The device of `--device`; auto takes CUDA, else MPS, else the CPU. Under a launcher each process has a GPU.

    Convolutions in float32 are then computed in float32, which cuDNN does not by default.

    Raises:
        OptionError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if launched():
        if name not in ("cpu", "cuda"):
            raise OptionError(f"--device {name}: several processes train on cpu or cuda (one GPU each)")
        if name == "cuda":
            name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.zeros(1, device=device)
        if device.type == "cuda" and launched():
            torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    except (RuntimeError, AssertionError):
        hint = "each process on a machine needs a GPU" if launched() else "choose auto, cpu, cuda, cuda:N or mps"
        raise OptionError(f"--device {name}: not available here; {hint}") from None
    return device


def describe(device: torch.device) -> str:
    """A device for the log: a GPU's name and memory, a CPU's name and the threads that compute."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / 1e9:.0f} GB"
    if device.type == "mps":
        return f"the GPU of an {platform.processor() or 'Apple'} processor"
    name, info = platform.processor(), Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found[1]
    threads = torch.get_num_threads()
    return f"{name or 'CPU'}, {threads} thread{'s' if threads > 1 else ''}"


def why_no_gpu() -> str:
    """Why a PyTorch that was built for CUDA can use no GPU; "" where it can, or was not."""
    if torch.version.cuda is None or torch.cuda.is_available():
        return ""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return f"PyTorch, built for CUDA {torch.version.cuda}, can't use a GPU: {brief(error).partition('. ')[0]}"
    return ""


def check_compiler(device: torch.device) -> None:
    """Compile something small, so that a machine that can't is noticed before anything long begins.

    Raises:
        OptionError: what is missing.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler's and the driver's own types, wrapped by torch in others
        raise OptionError(f"--compile: torch.compile does not work on this machine: {brief(error)}") from None


def seed_everything(seed: int) -> None:
    """Seed torch's global generator, from which fresh weights are drawn; all else has generators of its own."""
    torch.manual_seed(seed)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has had so far, in 10⁹ bytes: on the CUDA device it computes on, else its own.

    The device is not waited for; NaN on Windows without CUDA.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":  # where ru_maxrss is at least that of the process that started this one
        (peak,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(peak) * 1024 / 1e9
    if sys.platform == "win32":
        return math.nan
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS
