"""Logging, configured once for all loggers; progress bars stay below log lines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.errors import printable
from utils.files import with_filename
from utils.ranks import is_main

logger = logging.getLogger("rde")


class _Console(logging.Handler):
    """Writes to standard output without breaking progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(printable(self.format(record), sys.stdout.encoding or "utf-8", "\n"))
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for data still to be flushed
            if not isinstance(error, BrokenPipeError):  # else the reader of a pipe has left; the run continues
                error.filename = "standard output"
                raise


class _File(logging.FileHandler):
    """A log file; failing to write it ends the program, as for any other file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        with with_filename(self.baseFilename):
            raise  # called while the error is being handled


def start_logging(file: Path) -> None:
    """Log to the console and, with time stamps, append to `file`; only in the main process."""
    logger.disabled = not is_main()
    if logger.disabled:
        return
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.addHandler(_Console())
    to_file = _File(file, encoding="utf-8", errors="backslashreplace")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(to_file)


def status(what: str) -> None:
    """Show on a terminal what is taking time; only in the main process."""
    if is_main() and sys.stderr.isatty():
        print(printable(f"{what} …"), file=sys.stderr, flush=True)


def progress(work: Iterable, what: str, total: int | None = None) -> tqdm:
    """A progress bar, shown on a terminal and only in the main process."""
    return tqdm(work, what, total, leave=False, disable=None if is_main() else True)
