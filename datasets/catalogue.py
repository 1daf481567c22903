"""Descriptions of data sets, and finding them on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets.formats import read_entries
from datasets.settings import DATASETS, own_annotations, unknown_data_set
from utils.errors import DataError

_IMAGE_FOLDERS = ("imgs", "images")


class DataSet:
    """A data set: images with identities and captions, in a folder named after it.

    To add one in another format: subclass, override `entries`, and register it in `datasets.settings.DATASETS`.

    Attributes:
        files: possible names of its annotation file; the first that exists is read.
        first_id: the lowest training id, from which ids run without gaps; None if any ids are allowed.
        reference: the data's source.
        sizes: images, captions and persons of each split, as published.
        outdated: captions and persons of each split in a superseded release.
        as_listed: whether an image that is listed twice counts twice, as in published results; else entries are merged.
    """

    files: ClassVar[tuple[str, ...]] = ()
    first_id: ClassVar[int | None] = None
    reference: ClassVar[str] = ""
    sizes: ClassVar[dict[str, tuple[int, int, int]]] = {}
    outdated: ClassVar[dict[str, tuple[int, int]]] = {}
    as_listed: ClassVar[bool] = False

    def prepare(self, root_dir: Path) -> None:
        """Generate the data, if it isn't downloaded."""

    def entries(self, file: Path) -> list[Any]:
        """The annotation file's entries, one per image or caption, unchecked.

        Each is a mapping with "id" (integer or string), "file_path" (see `Place.image`), "captions" (strings) and
        "split" (train, val or test).

        Raises:
            DataError: the file can't be read.
        """
        return read_entries(file)


class OwnDataSet(DataSet):
    """A user's own annotation file, given by its path."""


@dataclass(frozen=True)
class Place:
    """A data set on disk.

    Attributes:
        file: the annotation file or folder.
        imgs: the folder that image paths are relative to.
        split_all: the split of entries that name none.
    """

    dataset: DataSet
    file: Path
    imgs: Path
    split_all: str = ""

    @property
    def folder(self) -> Path:
        """Folder of the annotation file."""
        return self.file if self.file.is_dir() else self.file.parent

    def image(self, path: str) -> Path:
        """The image at `path` in the annotations: in `imgs`, else in the annotation file's folder."""
        inside = self.imgs / path
        if os.path.isfile(inside) or not os.path.isfile(beside := self.folder / path):  # noqa: PTH113
            return inside
        return beside


def locate(dataset_name: str, root_dir: Path, split_all: str = "") -> Place:
    """Find a data set: `root_dir/dataset_name`, or an annotation file given by its path (`root_dir` is then unused).

    Args:
        split_all: the split of entries that name none; "" refuses such entries.

    Raises:
        OptionError: an unknown data set.
        DataError: its annotation file is missing.
    """
    if dataset_name in DATASETS:
        dataset = DATASETS[dataset_name]()
        dataset.prepare(root_dir)
        file = _find_annotations(root_dir / dataset_name, dataset)
        return Place(dataset, file, _find_images(file.parent) or file.parent / "imgs", split_all)
    file = own_annotations(dataset_name)
    if file is None:
        raise unknown_data_set(dataset_name)
    folder = file if file.is_dir() else file.parent
    return Place(OwnDataSet(), file, _find_images(folder) or folder, split_all)


def sizes_of(dataset_name: str) -> dict[str, tuple[int, int, int]]:
    """`DataSet.sizes`; empty for a user's own annotation file."""
    return DATASETS[dataset_name].sizes if dataset_name in DATASETS else {}


def _find_images(folder: Path) -> Path | None:
    return next((images for name in _IMAGE_FOLDERS if (images := folder / name).is_dir()), None)


def _find_annotations(folder: Path, dataset: DataSet) -> Path:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: --root_dir must be the folder that holds {folder.name}/")
    file = next((folder / name for name in dataset.files if (folder / name).is_file()), None)
    if file is None:
        others = sorted(path.name for path in folder.glob("*.json"))
        hint = f"; it holds {', '.join(others)}, which is another format" if others else ""
        raise DataError(
            f"{folder} has no {' or '.join(dataset.files)}{hint}: its authors distribute it with the images"
        )
    return file


def short_name(dataset_name: str) -> str:
    """A data set's name in paths: its name, or the stem of its annotation file."""
    own = own_annotations(dataset_name)
    return own.absolute().stem if own else dataset_name
