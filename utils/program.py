"""Start and end of every command: a user error is one line, an interrupt exits cleanly."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from utils.errors import UserError, printable
from utils.ranks import is_main, launched

# Seconds to wait with an error that another process may report: the launcher ends the others when one ends.
_REPORT_DELAY = 5
_BROKEN_PIPE = 128 + 13  # SIGPIPE (missing on Windows): the reader of the output has left
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_program(main: Callable[[Sequence[str]], object]) -> None:
    """Run a command: a user error prints one line and exits with 2; an interrupt exits with 130, SIGTERM with 143.

    Among several launched processes, the first to fail reports why.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack a caption's characters
    try:
        if launched():
            _run_launched(main)
        else:
            main(sys.argv[1:])
    except KeyboardInterrupt as interrupt:
        if is_main():
            print(printable(": ".join(["interrupted", *getattr(interrupt, "__notes__", ())])), file=sys.stderr)
        _exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except BrokenPipeError:  # the reader of the output, e.g. head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(_BROKEN_PIPE)
    except Exception as error:
        line = _line(error)
        if not line and not launched():
            raise
        if launched():
            _wait_for_other_reports(0 if line else 1)
        print(f"error: {printable(line)}" if line else traceback.format_exc().rstrip(), file=sys.stderr)
        _exit(2 if line else 1)


def _run_launched(main: Callable[[Sequence[str]], object]) -> None:
    """Run as one of several processes: connect before, disconnect afterwards."""
    from utils.distributed import connect, disconnect

    connect()
    main(sys.argv[1:])
    disconnect()
    _exit(0)


def _line(error: Exception) -> str:
    """The line for a user error; "" for a bug of ours, which is reported in full."""
    if isinstance(error, UserError):
        return error.line
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return f"{error.filename or 'writing failed'}: {error.strerror}"
    return ""


def _interrupt(number: int, _: FrameType | None) -> None:
    """Exit cleanly at the first signal; the next one ends the process immediately."""
    _restore_default_handlers()
    raise KeyboardInterrupt(number)


def _restore_default_handlers() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Delay interrupts until the end of the block, if a library would treat them as its own errors."""
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _wait_for_other_reports(turns: int) -> None:
    """Wait, so that the launcher can end this process if another reports the same error or its cause: the main process
    reports before others, and user errors come before failures (`turns` 1)."""
    _restore_default_handlers()
    time.sleep(_REPORT_DELAY * (turns + (not is_main())))


def _exit(status: int) -> None:
    """Exit; immediately in a launched process, whose communication threads can hang or abort during shutdown."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
