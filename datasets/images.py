"""Decoding images, of data sets or a user's own, to RGB of one size, whatever their format."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from utils.errors import DataError, brief

T = TypeVar("T")
R = TypeVar("R")
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Formats that Pillow decodes by itself: for EPS, say, it would start another program on what the file says.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_MOST_PIXELS = 89_478_485  # beyond which Pillow warns
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_rgb(path: Path, size: tuple[int, int], *, upright: bool = False) -> Image.Image:
    """Decode an image as RGB.

    Args:
        upright: for anybody's pictures: turned as the camera says (EXIF) and on white where they are transparent, as
            viewers do, and a JPEG of many times the pixels that (height, width) needs decoded smaller. Data sets are
            read as they are.

    Raises:
        ValueError: its header claims more pixels than any picture of a person has; it is not decoded.
        Exception: whatever Pillow raises over a broken file.
    """
    with Image.open(path, formats=_FORMATS) as image:
        if upright:
            image.draft(None, (4 * size[1], 4 * size[0]))
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"its header claims {image.width}×{image.height} pixels, more than {_MOST_PIXELS:,}")
        return _to_rgb(_as_shown(image) if upright else image)


def _as_shown(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data and not image.mode.startswith("I"):  # which no transparent mode could hold
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, all but the darkest of which Pillow would make white
        image = Image.fromarray(np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def read_image(path: Path, size: tuple[int, int], *, upright: bool = False) -> np.ndarray:
    """Decode an image and resize it bilinearly, antialiased, to (height, width).

    Args:
        upright: as for `open_rgb`.

    Returns:
        (3, height, width) uint8 RGB.

    Raises:
        DataError: the file is missing, broken or truncated.
    """
    try:
        resized = open_rgb(path, size, upright=upright).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        raise DataError(f"image {path} can't be read: {brief(error)}") from None
    return np.asarray(resized).transpose(2, 0, 1)


def in_threads(work: Callable[[T], R], items: Iterable[T], *, ahead: int, threads: int | None = None) -> Iterator[R]:
    """`work` of each item, in order; Pillow decodes and resizes outside the interpreter's lock.

    Args:
        ahead: items that are begun before the first result is taken: bounds memory, and the wait at an interrupt.
        threads: default: one a core.
    """
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
