"""Images with the same pixels under different names, within a data set and across data sets from the same source."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets.annotations import Split
from datasets.images import open_rgb, threaded_map
from utils.errors import DataError, brief
from utils.log import progress

Digests = dict[Path, bytes]


def pixel_digest(path: Path) -> bytes:
    """Digest of an image's size and RGB pixels, whatever its file format.

    Raises:
        DataError: the file is missing, broken or truncated.
    """
    try:
        image = open_rgb(path, (8, 8))
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"image {path} can't be read: {brief(error)}") from None
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()


def pixel_digests(paths: Sequence[Path]) -> tuple[Digests, list[str]]:
    """Digests of all readable images, with a progress bar, and the errors of the others."""
    digests, complaints = {}, []

    def digest(path: Path) -> bytes | DataError:
        try:
            return pixel_digest(path)
        except DataError as error:
            return error

    found = progress(threaded_map(digest, paths, ahead=512), "decoding images", len(paths))
    for path, content in zip(paths, found, strict=True):
        if isinstance(content, DataError):
            complaints.append(str(content))
        else:
            digests[path] = content
    return digests, complaints


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
