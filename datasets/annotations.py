"""The data sets' annotation files: one description each, one reader for all.

A split is images with identities, and captions that belong to images; every caption of the training split is one pair,
in file order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.synthpedes import ensure_synthpedes
from utils.errors import DataError, OptionError


@dataclass(frozen=True)
class Description:
    """Where a data set keeps what.

    Attributes:
        files: names the annotation file goes by; the first that exists is read.
        path_key: the key of an entry's image path, relative to `imgs/`.
        first_id: the lowest training id; pids are counted from it.
        has_val: without a validation split the test split stands in.
        reference: where the data come from, and their size.
    """

    files: tuple[str, ...]
    path_key: str
    first_id: int
    has_val: bool
    reference: str


DATASETS = {
    "CUHK-PEDES": Description(
        files=("reid_raw.json",),
        path_key="file_path",
        first_id=1,
        has_val=True,
        reference="Li et al., CVPR 2017: 40,206 images, 80,440 captions, 13,003 persons; 68,126 training pairs",
    ),
    "ICFG-PEDES": Description(
        files=("ICFG-PEDES.json", "ICFG_PEDES.json"),
        path_key="file_path",
        first_id=0,
        has_val=False,
        reference="Ding et al., 2021: 54,522 images with a caption each, 4,102 persons; 34,674 training pairs",
    ),
    "RSTPReid": Description(
        files=("data_captions.json",),
        path_key="img_path",
        first_id=0,
        has_val=True,
        reference="Zhu et al., ACM MM 2021: 20,505 images, 41,010 captions, 4,101 persons; 37,010 training pairs",
    ),
    "SynthPEDES": Description(
        files=("reid_raw.json",),
        path_key="file_path",
        first_id=1,
        has_val=True,
        reference="rendered by datasets/synthpedes; 2,400 training pairs",
    ),
}


@dataclass(frozen=True)
class Split:
    """One split: I images, C captions.

    Attributes:
        images: I paths.
        image_pids: (I,) identities.
        captions: C texts, in file order.
        caption_images: (C,) the image each caption belongs to.
    """

    images: list[Path]
    image_pids: np.ndarray
    captions: list[str]
    caption_images: np.ndarray

    @property
    def caption_pids(self) -> np.ndarray:
        """(C,) the identity each caption describes."""
        return self.image_pids[self.caption_images]

    def summary(self) -> str:
        """Counts for the log."""
        persons = len(np.unique(self.image_pids))
        return f"{len(self.images):,} images, {len(self.captions):,} captions, {persons:,} persons"


def describe(dataset_name: str) -> Description:
    """The description of a data set.

    Raises:
        OptionError: an unknown name.
    """
    if dataset_name not in DATASETS:
        raise OptionError(f"--dataset_name {dataset_name}: choose from {', '.join(DATASETS)}")
    return DATASETS[dataset_name]


def evaluation_split(dataset_name: str, wanted: str) -> str:
    """`wanted`, or "test" where the data set has no validation split."""
    return "test" if wanted == "val" and not describe(dataset_name).has_val else wanted


def read_splits(dataset_name: str, root_dir: Path, names: Iterable[str]) -> dict[str, Split]:
    """Read the named splits of `root_dir/dataset_name` and check them.

    Raises:
        OptionError: an unknown data set.
        DataError: a missing or malformed file, a missing image, an image without captions, training ids with gaps, an
            empty split; it names the file and the entry.
    """
    description = describe(dataset_name)
    folder = root_dir / dataset_name
    if dataset_name == "SynthPEDES":
        _write_synthpedes(root_dir)
    file = _find_annotations(folder, description)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{file}: expected a list of entries, found {type(entries).__name__}")
    chosen = {name: [] for name in names}
    for number, entry in enumerate(entries):
        _check_entry(entry, description, f"{file}, entry {number}")
        if entry["split"] in chosen:
            chosen[entry["split"]].append(entry)
    splits = {}
    for name, of_split in chosen.items():
        if not of_split:
            raise DataError(f"{file}: no entry of the split {name}")
        if name == "train":
            _check_ids(of_split, description.first_id, file)
        splits[name] = _build(of_split, description, folder / "imgs")
    _check_images(splits)
    return splits


def _write_synthpedes(root_dir: Path) -> None:
    """Render the built-in data set where it is not there yet."""
    try:
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
        raise DataError(f"{folder} has no {' or '.join(description.files)}{hint}")
    return found


def _check_entry(entry: object, description: Description, where: str) -> None:
    expected = {"id": int, description.path_key: str, "captions": list, "split": str}
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
    for key, kind in expected.items():
        if not isinstance(entry.get(key), kind) or isinstance(entry.get(key), bool):
            raise DataError(f"{where}: '{key}' must be a {kind.__name__}, found {entry.get(key)!r:.60}")
    if not entry["captions"]:
        raise DataError(f"{where}: {entry[description.path_key]} has no captions")
    for caption in entry["captions"]:
        if not isinstance(caption, str):
            raise DataError(f"{where}: a caption must be a text, found {caption!r:.60}")


def _check_ids(entries: list[dict], first_id: int, file: Path) -> None:
    ids = {entry["id"] for entry in entries}
    expected = range(first_id, first_id + len(ids))
    if ids != set(expected):
        missing = next(number for number in expected if number not in ids)
        raise DataError(f"{file}: training ids must run from {first_id} without gaps, but {missing} is missing")


def _build(entries: list[dict], description: Description, imgs: Path) -> Split:
    counts = [len(entry["captions"]) for entry in entries]
    return Split(
        images=[imgs / entry[description.path_key] for entry in entries],
        image_pids=np.array([entry["id"] - description.first_id for entry in entries], np.int64),
        captions=[caption for entry in entries for caption in entry["captions"]],
        caption_images=np.repeat(np.arange(len(entries)), counts),
    )


def _check_images(splits: dict[str, Split]) -> None:
    missing = [path for split in splits.values() for path in split.images if not path.is_file()]
    if missing:
        total = sum(len(split.images) for split in splits.values())
        raise DataError(f"{len(missing):,} of {total:,} images are missing, the first is {missing[0]}")
