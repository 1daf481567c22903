"""What every command does at its edges: mistakes of the user in one line, device and seeds."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from utils.errors import OptionError, UserError, brief, printable
from utils.ranks import check_launcher, is_main, launched, local_rank

if TYPE_CHECKING:
    import torch

# Seconds that an error is held back where another process may be the one to tell it: the launcher ends all others as
# soon as one has ended.
_OTHERS_FIRST = 5
# Seconds after which a signal that this process has not heard of, as it waits for others, ends it.
_NOT_HEARD = 10
_LEFT = 128 + 13  # whoever read along has left: SIGPIPE, which Windows lacks
# Seconds after which an interrupt comes again, where Python could not raise it.
_AGAIN = 0.05
_heard = threading.Event()
_writing = threading.Event()  # then a signal is heard of late


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: a user's mistake is one line and exit status 2; an interrupt is 130, SIGTERM 143, with its notes.

    Of several processes that a launcher started, the first to fail tells why.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _come_again
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a terminal may lack a caption's letters
    try:
        check_launcher()
    except OptionError as error:  # nobody can say which process is the one to tell it
        print(f"error: {printable(error.line)}", file=sys.stderr)
        sys.exit(2)
    try:
        if launched():
            _run_launched(main)
        else:
            main(sys.argv[1:])
    except KeyboardInterrupt as interrupt:
        if is_main():
            print(printable(": ".join(["interrupted", *getattr(interrupt, "__notes__", ())])), file=sys.stderr)
        _exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except BrokenPipeError:  # whoever read along, head, say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(_LEFT)
    except Exception as error:
        line = _line(error)
        if not line and not launched():
            raise
        if launched():
            _let_others_tell(0 if line else 1)
        print(f"error: {printable(line)}" if line else traceback.format_exc().rstrip(), file=sys.stderr)
        _exit(2 if line else 1)


def _run_launched(main: Callable[[Sequence[str]], None]) -> None:
    """Run as one of several processes, which meet before and part afterwards."""
    if sys.platform == "linux":  # be killed with the launcher; SIGTERM would not reach one that waits for another
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    from utils.distributed import connect, disconnect  # seconds, in which the launcher may be killed already

    _watch_for_signals()
    connect()
    main(sys.argv[1:])
    disconnect()
    _exit(0)


def _watch_for_signals() -> None:
    """Have a signal end this process also while it waits for others: then Python's own handlers are not called."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a data loader's signals are not ours

    def watch() -> None:
        while (number := os.read(reading, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        while not _heard.wait(_NOT_HEARD):
            if not _writing.is_set():
                os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def _line(error: Exception) -> str:
    """What to tell of a mistake of the user's; "" for one of ours, which is told in full."""
    if isinstance(error, UserError):
        return error.line
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return f"{error.filename or 'writing failed'}: {error.strerror}"
    return ""


def _interrupt(number: int, _: FrameType | None) -> None:
    """Leave in good order, once; the next signal ends the process at once."""
    _heard.set()
    _end_at_signals()
    raise KeyboardInterrupt(number)


def _come_again(what: sys.UnraisableHookArgs) -> None:
    """Have an interrupt that came in a `__del__` or a weak reference's callback, which can't raise, come once more."""
    if not isinstance(what.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    (number,) = what.exc_value.args
    signal.signal(signal.SIGALRM, lambda *_: _interrupt(number, None))
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)


def _end_at_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Have a first interrupt wait for the end of the block, where a library would take it for an error of its own."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        _heard.set()
        _end_at_signals()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # the last is an interrupt that comes again
    handlers = {number: signal.signal(number, note) for number in numbers}
    _writing.set()
    try:
        yield
    finally:
        _writing.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _let_others_tell(later: int) -> None:
    """Wait until the launcher would have ended this process for the failure of another that has the same to tell, or of
    which our error is but a consequence: main processes go before others, mistakes before failures (`later` 1)."""
    _end_at_signals()
    time.sleep(_OTHERS_FIRST * (later + (not is_main())))


def _exit(status: int) -> None:
    """End; one of several processes at once, as the threads of its connections can hang or abort while they end."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def choose_device(name: str) -> torch.device:
    """The device of `--device`; auto takes CUDA, else MPS, else the CPU. Under a launcher each process has a GPU.

    Raises:
        OptionError: no such device here.
    """
    import torch

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
    except (RuntimeError, AssertionError):
        hint = "each process on a machine needs a GPU" if launched() else "choose auto, cpu, cuda, cuda:N or mps"
        raise OptionError(f"--device {name}: not available here; {hint}") from None
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

    The device is not waited for; NaN on Windows without CUDA.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":  # where ru_maxrss is at least that of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9
    if sys.platform == "win32":
        return math.nan
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS
