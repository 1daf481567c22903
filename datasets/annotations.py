"""Annotation files: one reader for all data sets.

A split has images with identities, and captions that belong to images. Each caption of the training split is one pair,
in file order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.catalogue import Place, locate
from datasets.entries import Entry, check_entry, check_spelling
from utils.errors import DataError, printable


@dataclass(frozen=True)
class Split:
    """One split: I images, C captions, P persons.

    Attributes:
        images: I paths.
        image_pids: (I,) identities.
        captions: C texts, in file order.
        caption_images: (C,) index of each caption's image.
        person_ids: (P,) the annotation file's id of each identity.
    """

    images: list[Path]
    image_pids: np.ndarray
    captions: list[str]
    caption_images: np.ndarray
    person_ids: np.ndarray

    @property
    def size(self) -> tuple[int, int, int]:
        """Numbers of images, captions and persons."""
        return len(self.images), len(self.captions), len(np.unique(self.image_pids))

    @property
    def caption_pids(self) -> np.ndarray:
        """(C,) the identity that each caption describes."""
        return self.image_pids[self.caption_images]

    def summary(self) -> str:
        """Counts for the log."""
        images, captions, persons = self.size
        return f"{images:,} images, {captions:,} captions, {persons:,} persons"


STAND_IN = "training entries used as a test split"
_STAND_IN_PERSONS = 1000  # as in the published test splits


def read_annotations(dataset_name: str, root_dir: Path, split_all: str = "") -> tuple[Place, list[Entry]]:
    """Read and check a data set's annotation file.

    Args:
        dataset_name, root_dir, split_all: see `locate`. With `split_all`, the first persons' entries stand in for a
            missing test split, so that there is something to evaluate.

    Raises:
        OptionError: an unknown data set.
        DataError: a missing or malformed file; the message names the file and the entry.
    """
    place = locate(dataset_name, root_dir, split_all)
    entries = place.dataset.entries(place.file)
    if not isinstance(entries, list):
        raise DataError(f"{place.file}: expected a list of entries, found {type(entries).__name__}")
    try:
        checked = [check_entry(entry, place, n) for n, entry in enumerate(entries)]
    except DataError as error:
        raise DataError(f"{place.file}, {error}") from None
    check_spelling(checked, place.file)
    if split_all and all(entry.split != "test" for entry in checked):
        persons = set(sorted({entry.number for entry in checked})[:_STAND_IN_PERSONS])
        stand_in = [entry for entry in checked if entry.number in persons and entry.split == split_all]
        checked += [entry._replace(split="test", remarks=(STAND_IN,)) for entry in stand_in]
    return place, checked


def read_splits(
    dataset_name: str, root_dir: Path, names: Iterable[str], split_all: str = "", *, incomplete: bool = False
) -> dict[str, Split]:
    """`build_splits` of `read_annotations`."""
    return build_splits(*read_annotations(dataset_name, root_dir, split_all), names, incomplete=incomplete)


def build_splits(
    place: Place, entries: Iterable[Entry], names: Iterable[str], *, incomplete: bool = False
) -> dict[str, Split]:
    """Build and check splits of a data set; "val" is absent if the set has no validation split.

    Args:
        names: names of the splits.
        incomplete: allow missing images in the training split.

    Raises:
        DataError: an older release, a missing image, training ids with gaps, or an empty split.
    """
    chosen: dict[str, list[Entry]] = {name: [] for name in names}
    others: dict[str, None] = {}
    for entry in entries:
        if entry.split in chosen:
            chosen[entry.split].append(entry)
        else:
            others[entry.split] = None
    check_release(chosen, place)
    splits = {}
    for name, selected in chosen.items():
        if not selected and name == "val":
            continue
        if not selected:
            hint = f", but of {printable(', '.join(others))[:80]}" if others else ""
            raise DataError(f"{place.file}: no entry of the split {name}{hint}")
        if name == "train" and place.dataset.first_id is not None:
            check_ids(selected, place.dataset.first_id, place.file)
        splits[name] = build_split(merge_images(selected, place))
    _check_images({name: split for name, split in splits.items() if not (incomplete and name == "train")})
    return splits


def check_release(entries: Mapping[str, list[Entry]], place: Place) -> None:
    """Refuse a superseded release of a data set, whose splits differ from the published ones.

    Raises:
        DataError: it is one.
    """
    for split, (captions, persons) in place.dataset.outdated.items():
        listed = entries.get(split, [])
        counts = sum(len(entry.captions) for entry in listed), len({entry.number for entry in listed})
        if counts == (captions, persons):
            raise DataError(
                f"{place.file} is an older release with other splits ({split}: {captions:,} captions, {persons:,} "
                "persons): download the current one, which published numbers and noise indices are for"
            )


def check_ids(entries: list[Entry], first_id: int, file: Path) -> None:
    """Check that training ids run from `first_id` without gaps.

    Raises:
        DataError: they don't; the message names the first missing id.
    """
    ids = {entry.number for entry in entries}
    expected = range(first_id, first_id + len(ids))
    if ids != set(expected):
        missing = next(number for number in expected if number not in ids)
        raise DataError(
            f"{file}: training ids must run from {first_id} without gaps, but {missing} is missing; "
            f"for a subset, give the file: --dataset_name {file}"
        )


def merge_images(entries: Iterable[Entry], place: Place) -> list[Entry]:
    """Merge a split's entries of the same image and person, as in files with one caption per line, unless `as_listed`.

    Images are in the order of their first entries, and captions stay in order.
    """
    if place.dataset.as_listed:
        return list(entries)
    merged: dict[tuple[int, Path], Entry] = {}
    for entry in entries:
        key = entry.number, entry.path
        first = merged.get(key)
        merged[key] = first._replace(captions=[*first.captions, *entry.captions]) if first else entry
    return list(merged.values())


def build_split(entries: list[Entry]) -> Split:
    """Build a split from its entries; pids number the persons by ascending id."""
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
        training = "train" in splits and set(missing) <= set(splits["train"].images)
        hint = " (of the training split alone: --on_bad_image skip skips them)" if training else ""
        raise DataError(f"{len(missing):,} of {total:,} images are missing, first: {missing[0]}{hint}")
