"""What every command does at its edges: mistakes of the user in one line, device and seeds."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from utils.errors import OptionError, UserError, brief

if TYPE_CHECKING:
    import torch


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: a user's mistake is one line and exit status 2, an interrupt is 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):  # not a file of the user's
            raise
        print(f"error: {error.filename or 'writing failed'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def choose_device(name: str) -> torch.device:
    """The device of `--device`; auto takes CUDA, else MPS, else the CPU.

    Raises:
        OptionError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise OptionError(f"--device {name}: not available here; choose auto, cpu, cuda, cuda:N or mps") from None
    return device


def check_compiler(device: torch.device) -> None:
    """Compile something small, so that a machine that can't is noticed before anything long begins.

    Raises:
        OptionError: what is missing.
    """
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler's and the driver's own types, wrapped by torch in others
        raise OptionError(f"--compile: torch.compile does not work here: {brief(error)}") from None


def seed_everything(seed: int) -> None:
    """Seed torch's global generator, from which fresh weights are drawn; all else has generators of its own."""
    import torch

    torch.manual_seed(seed)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has had so far, in 10⁹ bytes: on the CUDA device it computes on, else its own.

    The device is not waited for.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e9 / 1024)
