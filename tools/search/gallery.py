"""Listing and decoding the images of a gallery folder."""

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
    """List image files, by suffix, and other files, as paths relative to the gallery; hidden files are skipped.

    Args:
        excluded: a folder to skip.

    Returns:
        Images, other files, and skipped folders with the reason: they are links or unreadable.

    Raises:
        OptionError: not a folder, or without images.
    """
    if not gallery.is_dir():
        raise OptionError(f"--gallery {gallery}: {'not a folder' if gallery.exists() else 'no such folder'}")
    images, others, skipped = [], [], {}

    def note(error: OSError) -> None:
        skipped[Path(error.filename).relative_to(gallery)] = error.strerror or "can't be listed"

    for folder, folders, names in os.walk(gallery, onerror=note):
        here = Path(folder)
        skipped |= {(here / f).relative_to(gallery): "a link to a folder" for f in folders if (here / f).is_symlink()}
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != excluded)
        for name in sorted(name for name in names if not name.startswith(".")):
            path = (here / name).relative_to(gallery)
            (images if path.suffix.lower() in SUFFIXES else others).append(path)
    if not images:
        raise OptionError(f"--gallery {gallery}: no images in it ({', '.join(sorted(SUFFIXES))})")
    return images, others, skipped


def stamp(file: Path) -> Stamp:
    """Size and modification time, to detect changes; zeros if the file is gone."""
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
        Rows without vectors, with `error` set for broken files, and (B, 3, height, width) uint8 pixels of the others.
    """

    def read(path: Path) -> tuple[Row, np.ndarray | None]:
        before = stamp(gallery / path)  # so that a file changed while being read is read again next time
        try:
            return Row(path, before, None, None), read_image(gallery / path, size, upright=True)
        except OSError as error:
            return Row(path, before, None, error.strerror), None
        except DataError as error:
            reason = str(error).removeprefix(f"image {gallery / path} can't be read: ")
            return Row(path, before, None, re.sub(r" ['\"]/.*", "", reason)), None  # Pillow appends the path

    read_all = threaded_map(read, paths, ahead=batch_size, threads=workers)
    while done := list(islice(read_all, batch_size)):
        pixels = [image for _, image in done if image is not None]
        yield [row for row, _ in done], np.stack(pixels) if pixels else np.empty((0, 3, *size), np.uint8)
