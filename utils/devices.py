"""Devices: selection, capabilities, memory usage."""

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
    """The device of `--device`; auto is CUDA, else MPS, else the CPU. Under a launcher each process gets its own GPU.

    Also disables TF32, cuDNN's default for float32 convolutions.

    Raises:
        OptionError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if launched():
        if name not in ("cpu", "cuda"):
            raise OptionError(f"--device {name}: several processes train on cpu or cuda (one GPU each)")
        if name == "cuda":
            name = f"cuda:{local_rank()}"
    try:
        if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError("no such device")
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "cuda" and launched():
            torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:
        hint = "each process on a machine needs a GPU" if launched() else "choose auto, cpu, cuda, cuda:N or mps"
        raise OptionError(f"--device {name}: not available here: {_first_sentence(error)}; {hint}") from None
    return device


def describe(device: torch.device) -> str:
    """A device for the log: a GPU's name and memory, or a CPU's name and number of threads."""
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
    """Why a PyTorch built for CUDA can't use a GPU; "" if it can, or wasn't built for CUDA."""
    if torch.version.cuda is None or torch.cuda.is_available():
        return ""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return f"PyTorch, built for CUDA {torch.version.cuda}, can't use a GPU: {_first_sentence(error)}"
    return ""


def _first_sentence(error: BaseException) -> str:
    return brief(error).partition(". ")[0].rstrip(".")


def check_compiler(device: torch.device) -> None:
    """Compile something small, to fail early on a machine that can't compile.

    Raises:
        OptionError: names what is missing.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler and the driver raise many types, wrapped by torch
        raise OptionError(f"--compile: torch.compile does not work on this machine: {brief(error)}") from None


def seed_everything(seed: int) -> None:
    """Seed torch's global generator, which initialises weights; everything else has its own generators."""
    torch.manual_seed(seed)


def peak_memory_gb(device: torch.device) -> float:
    """This process's peak memory so far in 10⁹ bytes: on its CUDA device, else its resident set.

    Doesn't synchronise with the device; NaN on Windows without CUDA.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":  # where ru_maxrss is inherited from the parent process
        (peak,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(peak) * 1024 / 1e9
    if sys.platform == "win32":
        return math.nan
    import resource  # missing on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS
