"""Atomic writes: a file is complete or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Have what goes wrong while `file` is written name it: of a full disk the system does not say."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


@contextmanager
def in_one_step(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when the block is done.

    An error leaves an older `file` as it was and nothing beside it; a kill at most what was written beside it.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with naming(file):
            yield partial
            partial.replace(file)
    except OSError as error:
        if error.filename == str(partial):  # which nobody has asked for
            error.filename, error.filename2 = str(file), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_writable(file: Path) -> None:
    """Fail before the work rather than after it if `file` can't be written; an older one stays as it is.

    Raises:
        OSError: it is a folder, or nothing can be written beside it.
    """
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    probe = file.with_name(f"{file.name}.partial")
    try:
        probe.touch()
    except OSError as error:
        error.filename = str(file)  # the probe is nothing that anybody has asked for
        raise
    probe.unlink()


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 in one step."""
    with in_one_step(file) as partial:
        partial.write_text(text, encoding="utf-8")
