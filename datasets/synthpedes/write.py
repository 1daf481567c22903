"""Writes SynthPEDES to disk in the layout of CUHK-PEDES: imgs/ and reid_raw.json."""

import json
import shutil
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .captions import describe
from .identity import Identity, draw_splits
from .render import render

ANNOTATIONS = "reid_raw.json"
RECIPE_FILE = "recipe.json"  # the arguments a set was written with

_SPLITS = ("train", "val", "test")  # in the order of the ids, as in CUHK-PEDES
_JPEG_QUALITY = 90
_IDENTITY_STREAM, _IMAGE_STREAM, _CAPTION_STREAM = range(3)

Record = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Parameters of a data set; the same recipe gives the same bytes.

    Attributes:
        identities, images_per_identity: counts for some or all of train, val and test.
        difficulty: of the images, in [0, 1]; see `render`.
        attributes_named: minimum and maximum number of attributes in a caption.
        rich_colours: probability in [0, 1] that a caption uses a rarer name of a colour; see `describe`.
    """

    identities: dict[str, int]
    images_per_identity: dict[str, int]
    captions_per_image: int
    seed: int
    difficulty: float
    attributes_named: tuple[int, int]
    rich_colours: float

    def plain(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return asdict(self) | {"attributes_named": list(self.attributes_named)}


def write_synthpedes(folder: Path, recipe: Recipe, *, progress: bool = True) -> None:
    """Write a data set to `folder`, which must not exist; `progress` enables a progress bar on a terminal.

    Files are written to a hidden folder next to `folder`, all that a kill leaves behind, and renamed when complete. If
    another process has created `folder` meanwhile, that one is kept and ours is dropped.
    Raises FileExistsError if `folder` exists at the start and ValueError for unknown splits.
    """
    identities = recipe.identities
    splits = [split for split in _SPLITS if split in identities]
    if len(splits) != len(identities) or identities.keys() != recipe.images_per_identity.keys():
        raise ValueError(f"identities and images_per_identity must name the same splits out of {', '.join(_SPLITS)}")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(exist_ok=True)  # not its parents: a mistyped path is an error
    work = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for split in splits:
            (work / "imgs" / split).mkdir(parents=True)
        people = draw_splits({split: identities[split] for split in splits}, _generator(recipe.seed, _IDENTITY_STREAM))
        numbered = list(enumerate(((split, who) for split in splits for who in people[split]), start=1))
        hidden = not (progress and sys.stderr.isatty())
        records: list[Record] = []
        for pid, (split, who) in tqdm(numbered, desc="drawing SynthPEDES", disable=hidden):
            records += _draw_person(recipe, work / "imgs", split, pid, who)
        text = json.dumps(records, indent=1, ensure_ascii=False)
        (work / ANNOTATIONS).write_text(text + "\n", encoding="utf-8")
        (work / RECIPE_FILE).write_text(json.dumps(recipe.plain(), indent=1) + "\n", encoding="utf-8")
        _move_into_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def _draw_person(recipe: Recipe, imgs: Path, split: str, pid: int, who: Identity) -> list[Record]:
    """Render and describe one person's images."""
    records = []
    for number in range(recipe.images_per_identity[split]):
        path = f"{split}/{pid}_{number}.jpg"
        image = render(who, _generator(recipe.seed, _IMAGE_STREAM, pid, number), recipe.difficulty)
        image.save(imgs / path, quality=_JPEG_QUALITY)
        words = _generator(recipe.seed, _CAPTION_STREAM, pid, number)
        captions = [
            describe(who, words, *recipe.attributes_named, recipe.rich_colours)
            for _ in range(recipe.captions_per_image)
        ]
        records.append({"id": pid, "file_path": path, "captions": captions, "split": split})
    return records


def remove_abandoned(folder: Path) -> None:
    """Remove folders that killed processes left behind more than an hour ago."""
    for left in folder.parent.glob(f".{folder.name}-*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


def _move_into_place(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError:
        if not (folder / ANNOTATIONS).is_file():
            raise
