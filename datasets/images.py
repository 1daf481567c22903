"""Decoding images of any format, from data sets or the user's own, to RGB of one size."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from utils.errors import DataError, brief
from utils.threads import usable_cores

T = TypeVar("T")
R = TypeVar("R")
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Formats that Pillow decodes itself: for EPS, for example, it would run an external program on the file.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_MAX_8_BIT, _MAX_16_BIT = 2**8 - 1, 2**16 - 1
_MAX_PIXELS = 89_478_485  # Pillow's warning threshold
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_rgb(path: Path, size: tuple[int, int], *, upright: bool = False) -> Image.Image:
    """Decode an image as RGB.

    Args:
        upright: for users' photos: rotate by EXIF orientation, put transparent pixels on white, as viewers do, and
            decode JPEGs much larger than (height, width) at reduced size. Data sets are read as stored.

    Raises:
        ValueError: its header claims implausibly many pixels; it isn't decoded.
        Exception: whatever Pillow raises for a broken file.
    """
    with Image.open(path, formats=_FORMATS) as image:
        if upright:
            image.draft(None, (4 * size[1], 4 * size[0]))
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"its header claims {image.width}×{image.height} pixels, more than {_MAX_PIXELS:,}")
        return _to_rgb(_as_displayed(image) if upright else image)


def _as_displayed(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data and not image.mode.startswith("I"):  # no mode with alpha holds 16 bits
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # wider than 8 bits: Pillow would clip 16-bit grey to white
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.max() > _MAX_16_BIT:
            raise ValueError(f"its pixels have 32 bits: save it with 8 or 16 as {', '.join(_FORMATS)}")
        if image.mode != "I" or pixels.max() > _MAX_8_BIT:  # "I" may hold 8 or 16 bits
            pixels = pixels // 256
        image = Image.fromarray(np.clip(pixels, 0, _MAX_8_BIT).astype(np.uint8))
    return image.convert("RGB")


def read_image(path: Path, size: tuple[int, int], *, upright: bool = False) -> np.ndarray:
    """Decode an image and resize it bilinearly, antialiased, to (height, width).

    Args:
        upright: see `open_rgb`.

    Returns:
        (3, height, width) uint8 RGB.

    Raises:
        DataError: the file is missing, broken or truncated.
    """
    try:
        resized = open_rgb(path, size, upright=upright).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"image {path} can't be read: {brief(error)}") from None
    return np.asarray(resized).transpose(2, 0, 1)


def threaded_map(work: Callable[[T], R], items: Iterable[T], *, ahead: int, threads: int | None = None) -> Iterator[R]:
    """Map `work` over the items in threads, in order; Pillow releases the GIL while it decodes and resizes.

    Args:
        ahead: maximum number of items in flight, which bounds memory and the delay of an interrupt.
        threads: default: one per usable core.
    """
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
