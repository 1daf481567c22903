"""Atomic writes: a file is complete or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def with_filename(file: Path | str) -> Iterator[None]:
    """Add the name of `file` to errors while writing it: for a full disk the system gives none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a path beside `file` to write to, which replaces `file` at the end of the block.

    An error leaves an existing `file` unchanged and nothing beside it; a kill may leave the partial file.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with with_filename(file):
            yield partial
            partial.replace(file)
    except OSError as error:
        if error.filename == str(partial):  # a name that the user doesn't know
            error.filename, error.filename2 = str(file), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_writable(file: Path) -> None:
    """Check before the work, not after it, that `file` can be written; an existing one is unchanged.

    Raises:
        OSError: it is a folder, or nothing can be written beside it.
    """
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    probe = file.with_name(f"{file.name}.partial")
    try:
        probe.touch()
    except OSError as error:
        error.filename = str(file)  # instead of the probe's name
        raise
    probe.unlink()


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 atomically."""
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")
