"""One tree of loggers, configured once; progress bars stay below its lines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.errors import printable
from utils.files import naming
from utils.ranks import is_main

logger = logging.getLogger("rde")


class _Console(logging.Handler):
    """Standard output, around any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(printable(self.format(record), sys.stdout.encoding or "utf-8", "\n"))
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
            if not isinstance(error, BrokenPipeError):  # then whoever read along has left; the run goes on
                error.filename = "standard output"
                raise


class _File(logging.FileHandler):
    """A log that can't be written ends the program like any other file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        with naming(self.baseFilename):
            raise  # this is called while the error is handled


def start_logging(file: Path) -> None:
    """Send the tree's lines to the console and append them to `file`, there with the time; the main process alone."""
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
    """Say on a terminal what takes its time now; the main process alone does."""
    if is_main() and sys.stderr.isatty():
        print(printable(f"{what} …"), file=sys.stderr, flush=True)


def progress(work: Iterable, what: str, total: int | None = None) -> tqdm:
    """A bar over long work, on a terminal; the main process alone shows it."""
    return tqdm(work, what, total, leave=False, disable=None if is_main() else True)
