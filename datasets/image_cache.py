"""Images decoded and resized once, then read from one memory-mapped file.

Resizing is deterministic and precedes all random augmentations, so reading the file is equivalent to decoding again. It
is keyed by the image size and every image's path, file size and time stamp, and renamed into place when complete, so a
killed build never looks complete. Among several processes one builds it while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from datasets.images import read_image, threaded_map
from datasets.settings import DataSettings, own_annotations
from utils.distributed import main_process_first
from utils.errors import DataError, brief
from utils.files import atomic_write, write_text
from utils.log import logger, progress

_AHEAD = 512  # number of images in flight


def image_cache_dir(settings: DataSettings, paths: Sequence[Path], size: tuple[int, int]) -> Path:
    """Folder of decoded images: `image_cache`, else beside the data, else the user's cache folder.

    The folder beside the data is used if it is writable, or already has these images, decoded by another user.
    """
    if settings.image_cache:
        return Path(settings.image_cache)
    dataset_dir = Path(settings.root_dir) / settings.dataset_name
    if own := own_annotations(settings.dataset_name):
        dataset_dir = own if own.is_dir() else own.parent
    beside = dataset_dir / ".image_cache"
    if os.access(beside if beside.is_dir() else dataset_dir, os.W_OK):
        return beside
    file = _cache_file(paths, size, beside)
    if os.access(file, os.R_OK) and not _broken_file(file).is_file():  # else broken images need another try
        return beside
    return Path.home() / ".cache" / "rde" / "images"


class BrokenImagesError(DataError):
    """Images can't be read; `broken` maps their indices to the reasons."""

    def __init__(self, broken: Mapping[int, str], total: int) -> None:
        others = f" ({len(broken)} of {total:,} images can't be read)" if len(broken) > 1 else ""
        super().__init__(f"{broken[min(broken)]}{others}")
        self.broken = broken


class CachedImages:
    """(I, 3, height, width) uint8, read from the file on demand; pickled by path, so each process opens it itself.

    Attributes:
        broken: the reason why an image could not be read, by index; its pixels are black.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.broken = _read_broken(file)
        try:
            self._images = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"the image cache {file} is damaged, delete it: {brief(error)}") from None
        self.shape, self.dtype = self._images.shape, self._images.dtype

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.array(self._images[rows])

    def __reduce__(self) -> tuple:
        return CachedImages, (self.file,)


def open_images(
    paths: Sequence[Path],
    size: tuple[int, int],
    cache_dir: Path,
    *,
    skip_broken: bool = False,
    retry_broken: bool = True,
) -> CachedImages:
    """All images at one size, decoded with a progress bar if not cached yet.

    Args:
        skip_broken: list unreadable images in the result's `broken` instead of raising.
        retry_broken: try again to read images that could not be read when the cache was built.

    Raises:
        BrokenImagesError: an image can't be read.
        DataError: the cache can't be written, or is damaged.
    """
    file = _cache_file(paths, size, cache_dir)
    with main_process_first():
        if not file.is_file():
            _build(paths, size, file, skip_broken)
        elif retry_broken:
            _repair(paths, size, file)
    images = CachedImages(file)
    if images.shape != (len(paths), 3, *size) or images.dtype != np.uint8:
        raise DataError(f"the image cache {file} is damaged, delete it: it holds {images.dtype} of {images.shape}")
    if images.broken and not skip_broken:
        raise BrokenImagesError(images.broken, len(paths))
    return images


def _cache_file(paths: Sequence[Path], size: tuple[int, int], cache_dir: Path) -> Path:
    return cache_dir / f"images_{size[0]}x{size[1]}_{_fingerprint(paths)}.npy"


def _broken_file(file: Path) -> Path:
    """File that lists a cache's broken images; absent if there are none."""
    return file.with_suffix(".broken.json")


def _read_broken(file: Path) -> dict[int, str]:
    broken_file = _broken_file(file)
    if not broken_file.is_file():
        return {}
    try:
        content = json.loads(broken_file.read_text(encoding="utf-8"))
        return {int(number): str(reason) for number, reason in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"the image cache {file} is damaged, delete it and {broken_file}: {brief(error)}") from None


def _write_broken(broken: Mapping[int, str], file: Path) -> None:
    if broken:
        write_text(_broken_file(file), json.dumps(broken))
    else:
        _broken_file(file).unlink(missing_ok=True)


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        name, stamp = str(path), "missing"
        with suppress(OSError, ValueError):  # missing, or a name that no file can have
            name = os.path.realpath(path)
            stat = path.stat()
            stamp = f"{stat.st_size}\0{stat.st_mtime_ns}"
        digest.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _build(paths: Sequence[Path], size: tuple[int, int], file: Path, skip_broken: bool) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent):
            if file.is_file():  # built by another process meanwhile
                return
            for abandoned in file.parent.glob("*.partial"):
                abandoned.unlink()
            _require_space(3 * size[0] * size[1] * len(paths), file.parent)
            with atomic_write(file) as partial:
                if (broken := _write(paths, size, partial)) and not skip_broken:
                    raise BrokenImagesError(broken, len(paths))
                _write_broken(broken, file)
    except OSError as error:
        raise DataError(f"the image cache {file.parent} can't be written: {error.strerror or error}") from None


def _require_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the image cache needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {folder}: "
            "--image_cache FOLDER puts it elsewhere"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a cache folder for this process, waiting until no other uses it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("another process is decoding images into %s, waiting", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _repair(paths: Sequence[Path], size: tuple[int, int], file: Path) -> None:
    """Add images to the cache that could not be read when it was built, e.g. because a network disk was offline.

    Runs that started without them don't call this when resumed.
    """
    if not (broken := _read_broken(file)):
        return
    try:
        retried = dict(zip(broken, _decode([paths[number] for number in broken], size), strict=True))
        repaired = {number: image for number, image in retried.items() if not isinstance(image, DataError)}
        if repaired:
            with _locked(file.parent):
                images = np.load(file, mmap_mode="r+")
                for number, image in repaired.items():
                    images[number] = image
                images.flush()
                _write_broken({number: reason for number, reason in broken.items() if number not in repaired}, file)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"the image cache {file} can't be repaired, delete it: {brief(error)}") from None


def _write(paths: Sequence[Path], size: tuple[int, int], file: Path) -> dict[int, str]:
    """Write an .npy file image by image; unlike writing to a memory map, this reports a full disk.

    Returns:
        The reason why an image can't be read, by index; such images are black.
    """
    broken = {}
    with file.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), 3, *size)}
        np.lib.format.write_array_header_1_0(stream, header)
        for number, image in enumerate(_decode(paths, size)):
            if isinstance(image, DataError):
                broken[number] = str(image)
                image = np.zeros((3, *size), np.uint8)
            stream.write(image.tobytes())
    return broken


def _decode(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray | DataError]:
    """Yield each image in order, or the error if it can't be read."""

    def read(path: Path) -> np.ndarray | DataError:
        try:
            return read_image(path, size)
        except DataError as error:
            return error

    yield from progress(threaded_map(read, paths, ahead=_AHEAD), "decoding images", len(paths))
