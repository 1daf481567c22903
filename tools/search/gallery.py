"""A folder of a user's own images: listing and decoding its files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from datasets.images import read_image, threaded_map
from tools.search.rows import Row, Stamp
from utils.errors import DataError, OptionError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def list_files(gallery: Path, excluded: Path) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """List images, by file name, and other files, as paths relative to the gallery; hidden files are skipped.

    Args:
        excluded: a folder to skip.

    Returns:
        Images, other files, and skipped folders with the reason: links and unreadable ones.

    Raises:
        OptionError: no folder, or no image in it.
    """
    if not gallery.is_dir():
        raise OptionError(f"--gallery {gallery}: {'is no folder' if gallery.exists() else 'no such folder'}")
    pictures, others, closed = [], [], {}

    def note(error: OSError) -> None:
        closed[Path(error.filename).relative_to(gallery)] = error.strerror or "can't be listed"

    for folder, folders, names in os.walk(gallery, onerror=note):
        here = Path(folder)
        closed |= {(here / f).relative_to(gallery): "a link to a folder" for f in folders if (here / f).is_symlink()}
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != excluded)
        for name in sorted(name for name in names if not name.startswith(".")):
            path = (here / name).relative_to(gallery)
            (pictures if path.suffix.lower() in SUFFIXES else others).append(path)
    if not pictures:
        raise OptionError(f"--gallery {gallery}: no image in it ({', '.join(sorted(SUFFIXES))})")
    return pictures, others, closed


def stamp(file: Path) -> Stamp:
    """Length and modification time, to detect changes; zeros if the file is gone."""
    try:
        status = file.stat()
    except OSError:
        return Stamp(0, 0)
    return Stamp(status.st_size, status.st_mtime_ns)


def read_batches(
    gallery: Path, paths: Sequence[Path], size: tuple[int, int], batch_size: int, workers: int
) -> Iterator[tuple[list[Row], np.ndarray]]:
    """Decode images, prefetching the next batch.

    Yields:
        Rows without vectors, with `error` set for broken files, and (B, 3, height, width) uint8 of the others.
    """

    def read(path: Path) -> tuple[Row, np.ndarray | None]:
        found = stamp(gallery / path)  # before reading, so that a file changed meanwhile is read again next time
        try:
            return Row(path, found, None, None), read_image(gallery / path, size, upright=True)
        except OSError as error:
            return Row(path, found, None, error.strerror), None
        except DataError as error:
            reason = str(error).removeprefix(f"image {gallery / path} can't be read: ")
            return Row(path, found, None, re.sub(r" ['\"]/.*", "", reason)), None  # Pillow appends the path

    read_all = threaded_map(read, paths, ahead=batch_size, threads=workers)
    while done := list(islice(read_all, batch_size)):
        pixels = [image for _, image in done if image is not None]
        yield [row for row, _ in done], np.stack(pixels) if pixels else np.empty((0, 3, *size), np.uint8)
