"""Pixels of a data set's images: the same ones under different names or in other data sets, and unreadable ones."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import ExifTags

from datasets.annotations import Split
from datasets.images import open_rgb, threaded_map
from utils.errors import DataError, brief
from utils.log import progress

Digests = dict[Path, bytes]


def pixel_digest(path: Path) -> tuple[bytes, bool]:
    """Digest of an image's size and RGB pixels, whatever its file format, and whether viewers would turn the image.

    Raises:
        DataError: the file is missing, broken or truncated.
    """
    try:
        image = open_rgb(path, (8, 8))
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"image {path} can't be read: {brief(error)}") from None
    turned = False
    with suppress(Exception):  # damaged EXIF data, which training doesn't read
        turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest(), turned


def pixel_digests(paths: Sequence[Path]) -> tuple[Digests, list[Path], list[str]]:
    """Digests of all readable images, with a progress bar, those that viewers would turn, and the errors of others."""
    digests, turned, complaints = {}, [], []

    def digest(path: Path) -> tuple[bytes, bool] | DataError:
        try:
            return pixel_digest(path)
        except DataError as error:
            return error

    found = progress(threaded_map(digest, paths, ahead=512), "decoding images", len(paths))
    for path, content in zip(paths, found, strict=True):
        if isinstance(content, DataError):
            complaints.append(str(content))
        else:
            digests[path] = content[0]
            turned += [path] * content[1]
    return digests, turned, complaints


def across_splits(splits: Mapping[str, Split], digests: Digests) -> Iterator[tuple[str, str, Path, Path]]:
    """Images with the same pixels in two splits: both splits' names and, for each, the path of its first one."""
    places = _places(splits, digests)
    for of_pixels in places.values():
        names = list(of_pixels)
        for number, first in enumerate(names):
            yield from ((first, second, of_pixels[first], of_pixels[second]) for second in names[number + 1 :])


def across_sets(
    splits: Mapping[str, Split], digests: Digests, others: Mapping[str, Split], other_digests: Digests
) -> Iterator[tuple[str, str, Path, Path]]:
    """As `across_splits`, for a split here and one of another data set."""
    there = _places(others, other_digests)
    for pixels, of_pixels in _places(splits, digests).items():
        for name, path in of_pixels.items():
            yield from ((name, other, path, elsewhere) for other, elsewhere in there.get(pixels, {}).items())


def _places(splits: Mapping[str, Split], digests: Digests) -> dict[bytes, dict[str, Path]]:
    """The first image with these pixels, by digest and split."""
    places: dict[bytes, dict[str, Path]] = defaultdict(dict)
    for name, split in splits.items():
        for path in split.images:
            if path in digests:
                places[digests[path]].setdefault(name, path)
    return places
