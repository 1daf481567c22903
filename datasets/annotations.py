"""The data sets' annotation files: one description each, one reader for all.

A split is images with identities, and captions that belong to images; every caption of the training split is one pair,
in file order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.synthpedes import ensure_synthpedes
from utils.distributed import one_first
from utils.errors import DataError, OptionError


@dataclass(frozen=True)
class Description:
    """Where a data set keeps what.

    Attributes:
        files: names the annotation file goes by; the first that exists is read.
        path_keys: keys an entry's image path, relative to `imgs/`, may stand under.
        first_id: the lowest training id, from which they run without gaps; None where any numbers will do.
        reference: where the data come from.
        sizes: images, captions and persons of each split, as published.
    """

    files: tuple[str, ...]
    path_keys: tuple[str, ...]
    first_id: int | None
    reference: str
    sizes: dict[str, tuple[int, int, int]] = field(default_factory=dict)


DATASETS = {
    "CUHK-PEDES": Description(
        files=("reid_raw.json",),
        path_keys=("file_path",),
        first_id=1,
        reference="Li et al., CVPR 2017",
        sizes={"train": (34054, 68126, 11003), "val": (3078, 6158, 1000), "test": (3074, 6156, 1000)},
    ),
    "ICFG-PEDES": Description(
        files=("ICFG-PEDES.json", "ICFG_PEDES.json"),
        path_keys=("file_path",),
        first_id=0,
        reference="Ding et al., 2021",
        sizes={"train": (34674, 34674, 3102), "test": (19848, 19848, 1000)},
    ),
    "RSTPReid": Description(
        files=("data_captions.json",),
        path_keys=("img_path",),
        first_id=0,
        reference="Zhu et al., ACM MM 2021",
        sizes={"train": (18505, 37010, 3701), "val": (1000, 2000, 200), "test": (1000, 2000, 200)},
    ),
    "SynthPEDES": Description(
        files=("reid_raw.json",),
        path_keys=("file_path",),
        first_id=1,
        reference="rendered by datasets/synthpedes",
        sizes={"train": (1200, 2400, 300), "val": (300, 600, 100), "test": (300, 600, 75)},
    ),
}
# Annotation files of anybody's own, given by path.
OWN = Description(files=(), path_keys=("file_path", "img_path"), first_id=None, reference="")


@dataclass(frozen=True)
class Split:
    """One split: I images, C captions, P persons.

    Attributes:
        images: I paths.
        image_pids: (I,) identities.
        captions: C texts, in file order.
        caption_images: (C,) the image each caption belongs to.
        person_ids: (P,) the annotation file's own id of each identity.
    """

    images: list[Path]
    image_pids: np.ndarray
    captions: list[str]
    caption_images: np.ndarray
    person_ids: np.ndarray

    @property
    def size(self) -> tuple[int, int, int]:
        """Images, captions, persons."""
        return len(self.images), len(self.captions), len(np.unique(self.image_pids))

    @property
    def caption_pids(self) -> np.ndarray:
        """(C,) the identity each caption describes."""
        return self.image_pids[self.caption_images]

    def summary(self) -> str:
        """Counts for the log."""
        images, captions, persons = self.size
        return f"{images:,} images, {captions:,} captions, {persons:,} persons"


@dataclass(frozen=True)
class Place:
    """A data set on disk: its description, annotation file and the folder that its image paths start from."""

    description: Description
    file: Path
    imgs: Path


def locate(dataset_name: str, root_dir: Path) -> Place:
    """Find a data set: `root_dir/dataset_name`, or an annotation file given by its path (then `root_dir` is not read).

    Raises:
        OptionError: an unknown data set.
        DataError: no annotation file where it should be.
    """
    if dataset_name in DATASETS:
        if dataset_name == "SynthPEDES":
            _write_synthpedes(root_dir)
        file = _find_annotations(root_dir / dataset_name, DATASETS[dataset_name])
        return Place(DATASETS[dataset_name], file, file.parent / "imgs")
    file = Path(dataset_name)
    if not file.is_file():
        raise OptionError(f"--dataset_name {dataset_name}: neither one of {', '.join(DATASETS)} nor a file")
    return Place(OWN, file, file.parent / "imgs" if (file.parent / "imgs").is_dir() else file.parent)


def read_splits(dataset_name: str, root_dir: Path, names: Iterable[str]) -> dict[str, Split]:
    """Read and check the splits of a data set; "val" is left out where the set has no validation split.

    Args:
        dataset_name, root_dir: as for `locate`.
        names: of the splits.

    Raises:
        OptionError: an unknown data set.
        DataError: a missing or malformed file, a missing image, an image without captions, training ids with gaps, an
            empty split; it names the file and the entry.
    """
    place = locate(dataset_name, root_dir)
    chosen: dict[str, list[Entry]] = {name: [] for name in names}
    for number, entry in enumerate(read_entries(place.file)):
        checked = check_entry(entry, place, f"{place.file}, entry {number}")
        if checked.split in chosen:
            chosen[checked.split].append(checked)
    splits = {}
    for name, entries in chosen.items():
        if not entries and name == "val":
            continue
        if not entries:
            raise DataError(f"{place.file}: no entry of the split {name}")
        if name == "train" and place.description.first_id is not None:
            check_ids(entries, place.description.first_id, place.file)
        splits[name] = build_split(entries)
    _check_images(splits)
    return splits


def read_entries(file: Path) -> list:
    """The entries of a JSON list, or of JSON Lines (`.jsonl`), unchecked.

    Raises:
        DataError: the file can't be read, or holds no list.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            return [_line_of_json(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        entries = json.loads(text)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON Lines file" if file.suffix == ".jsonl" else "JSON file (JSON Lines end in .jsonl)"
        raise DataError(f"{file} is not a {kind}: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{file}: expected a list of entries, found {type(entries).__name__}")
    return entries


def _line_of_json(line: str, number: int) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _write_synthpedes(root_dir: Path) -> None:
    """Render the built-in data set where it is not there yet."""
    try:
        with one_first():
            ensure_synthpedes(root_dir)
    except OSError as error:
        raise DataError(f"SynthPEDES can't be written: {error}") from None


def _find_annotations(folder: Path, description: Description) -> Path:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: --root_dir must be the folder that holds {folder.name}/")
    found = next((folder / name for name in description.files if (folder / name).is_file()), None)
    if found is None:
        others = sorted(path.name for path in folder.glob("*.json"))
        hint = f"; it holds {', '.join(others)}, which is another format" if others else ""
        raise DataError(
            f"{folder} has no {' or '.join(description.files)}{hint}: its authors hand it out with the images"
        )
    return found


_KINDS = {int: "whole number", str: "text", list: "list"}


class Entry(NamedTuple):
    """One image of an annotation file."""

    number: int
    path: Path
    captions: list[str]
    split: str


def check_entry(entry: object, place: Place, where: str) -> Entry:
    """One entry in its parts; `where` is named in messages.

    Raises:
        DataError: a key is missing or of the wrong type, or there is no caption.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
    path_key = next((key for key in place.description.path_keys if key in entry), place.description.path_keys[0])
    for key, kind in {"id": int, path_key: str, "captions": list, "split": str}.items():
        if not isinstance(entry.get(key), kind) or isinstance(entry.get(key), bool):
            raise DataError(f"{where}: '{key}' must be a {_KINDS[kind]}, found {entry.get(key)!r:.60}")
    if not -(2**63) <= entry["id"] < 2**63:
        raise DataError(f"{where}: id {entry['id']} is out of range")
    if not entry["captions"]:
        raise DataError(f"{where}: {entry[path_key]} has no captions")
    for caption in entry["captions"]:
        if not isinstance(caption, str):
            raise DataError(f"{where}: a caption must be a text, found {caption!r:.60}")
    return Entry(entry["id"], place.imgs / entry[path_key], entry["captions"], entry["split"])


def check_ids(entries: list[Entry], first_id: int, file: Path) -> None:
    """Training ids must run from `first_id` without gaps.

    Raises:
        DataError: names the first id that is missing.
    """
    ids = {entry.number for entry in entries}
    expected = range(first_id, first_id + len(ids))
    if ids != set(expected):
        missing = next(number for number in expected if number not in ids)
        raise DataError(f"{file}: training ids must run from {first_id} without gaps, but {missing} is missing")


def build_split(entries: list[Entry]) -> Split:
    """A split of its entries; pids count the persons of the split in the order of their ids."""
    ids, pids = np.unique([entry.number for entry in entries], return_inverse=True)
    return Split(
        images=[entry.path for entry in entries],
        image_pids=pids.astype(np.int64),
        captions=[caption for entry in entries for caption in entry.captions],
        caption_images=np.repeat(np.arange(len(entries)), [len(entry.captions) for entry in entries]),
        person_ids=ids,
    )


def _check_images(splits: dict[str, Split]) -> None:
    missing = [path for split in splits.values() for path in split.images if not os.path.isfile(path)]  # noqa: PTH113
    if missing:
        total = sum(len(split.images) for split in splits.values())
        raise DataError(f"{len(missing):,} of {total:,} images are missing, the first is {missing[0]}")
