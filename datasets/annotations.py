"""The data sets' annotation files: one reader for all.

A split is images with identities, and captions that belong to images; every caption of the training split is one pair,
in file order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.places import Place, locate
from utils.errors import DataError


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
