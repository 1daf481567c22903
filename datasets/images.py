"""Images decoded and resized once, then read from one memory-mapped file.

Resizing comes before every random augmentation and is deterministic, so the file holds exactly what decoding again
would give. It is keyed by size and by every image's path, length and time stamp, and renamed into place when complete:
a killed build leaves nothing that could be mistaken for it, and processes share it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from tqdm import tqdm

from utils.errors import DataError, brief

ImageFile.LOAD_TRUNCATED_IMAGES = False


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Decode an image and resize it bilinearly, antialiased, to (height, width).

    Returns:
        (3, height, width) uint8 RGB.

    Raises:
        DataError: the file is missing, broken or truncated.
    """
    try:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        raise DataError(f"image {path} can't be read: {brief(error)}") from None
    return np.asarray(resized).transpose(2, 0, 1)


def image_cache_dir(options: Mapping[str, Any]) -> Path:
    """Where decoded images are kept: in `image_cache`, else beside the data, else in the user's cache folder."""
    if options["image_cache"]:
        return Path(options["image_cache"])
    dataset_dir = Path(options["root_dir"]) / options["dataset_name"]
    if os.access(dataset_dir, os.W_OK):
        return dataset_dir / ".image_cache"
    return Path.home() / ".cache" / "rde" / "images"


class CachedImages:
    """(I, 3, height, width) uint8, read from the file as they are asked for; another process opens the file anew."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._images = np.load(file, mmap_mode="r")
        self.shape = self._images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.array(self._images[rows])

    def __reduce__(self) -> tuple:
        return CachedImages, (self.file,)


def open_images(paths: Sequence[Path], size: tuple[int, int], cache_dir: Path) -> CachedImages:
    """All images at one size; decoded, with a progress bar, where the cache does not hold them yet.

    Raises:
        DataError: an image can't be read, or the cache can't be written.
    """
    file = cache_dir / f"images_{size[0]}x{size[1]}_{_fingerprint(paths)}.npy"
    if not file.is_file():
        _build(paths, size, file)
    return CachedImages(file)


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(paths: Sequence[Path], size: tuple[int, int], file: Path) -> None:
    partial = file.with_name(f"{file.stem}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(paths), 3, *size))
        # Pillow decodes and resizes outside the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda path: read_image(path, size), paths)
            for number, image in enumerate(tqdm(decoded, "images", len(paths), disable=None, leave=False)):
                images[number] = image
        images.flush()
        partial.rename(file)
    except OSError as error:
        raise DataError(f"the image cache {file.parent} can't be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
