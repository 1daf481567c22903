"""Finding pixel-identical images, within a data set or in two, and unreadable ones."""

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
    """Digest of an image's size and RGB pixels, whatever its format, and whether viewers would rotate it.

    Raises:
        DataError: the file is missing, broken or truncated.
    """
    try:
        image = open_rgb(path, (8, 8))
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"image {path} can't be read: {brief(error)}") from None
    rotated = False
    with suppress(Exception):  # damaged EXIF data, which training doesn't read
        rotated = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest(), rotated


def pixel_digests(paths: Sequence[Path]) -> tuple[Digests, list[Path], list[str]]:
    """Digests of readable images, those that viewers would rotate, and errors of others; with a progress bar."""
    digests, rotated, errors = {}, [], []

    def digest(path: Path) -> tuple[bytes, bool] | DataError:
        try:
            return pixel_digest(path)
        except DataError as error:
            return error

    results = progress(threaded_map(digest, paths, ahead=512), "decoding images", len(paths))
    for path, content in zip(paths, results, strict=True):
        if isinstance(content, DataError):
            errors.append(str(content))
        else:
            digests[path] = content[0]
            rotated += [path] * content[1]
    return digests, rotated, errors


def across_splits(splits: Mapping[str, Split], digests: Digests) -> Iterator[tuple[str, str, Path, Path]]:
    """Images with the same pixels in two splits: the splits' names, and the path of the first such image in each."""
    for paths in _by_pixels(splits, digests).values():
        names = list(paths)
        for number, first in enumerate(names):
            yield from ((first, second, paths[first], paths[second]) for second in names[number + 1 :])


def across_sets(
    splits: Mapping[str, Split], digests: Digests, others: Mapping[str, Split], other_digests: Digests
) -> Iterator[tuple[str, str, Path, Path]]:
    """As `across_splits`, for one split here and one of another data set."""
    other_paths = _by_pixels(others, other_digests)
    for pixels, paths in _by_pixels(splits, digests).items():
        for name, path in paths.items():
            yield from ((name, other, path, elsewhere) for other, elsewhere in other_paths.get(pixels, {}).items())


def _by_pixels(splits: Mapping[str, Split], digests: Digests) -> dict[bytes, dict[str, Path]]:
    """The first image with the same pixels, by digest and split."""
    first: dict[bytes, dict[str, Path]] = defaultdict(dict)
    for name, split in splits.items():
        for path in split.images:
            if path in digests:
                first[digests[path]].setdefault(name, path)
    return first
