"""SynthPEDES: drawn pedestrians with English captions, the built-in data set.

It has the layout and file format of CUHK-PEDES, so that the same loader reads both.
"""

import errno
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .sheet import contact_sheet
from .write import ANNOTATIONS, RECIPE_FILE, Recipe, remove_abandoned, write_synthpedes

FOLDER = "SynthPEDES"

# The default set: 2,400 training pairs of image and caption.
RECIPE = Recipe(
    identities={"train": 300, "val": 100, "test": 75},
    images_per_identity={"train": 4, "val": 3, "test": 4},
    captions_per_image=2,
    seed=2024,
    difficulty=0.35,
    attributes_named=(6, 10),
    rich_colours=0.5,
)

__all__ = [
    "ANNOTATIONS",
    "RECIPE",
    "Recipe",
    "contact_sheet",
    "ensure_rendered",
    "ensure_synthpedes",
    "write_synthpedes",
]


def ensure_synthpedes(root_dir: Path) -> Path:
    """Return `root_dir`/SynthPEDES, writing the default set there if it is missing.

    Raises FileExistsError if that folder exists but wasn't written with this recipe.
    """
    folder = Path(root_dir) / FOLDER
    ensure_rendered(folder, RECIPE, [ANNOTATIONS])
    return folder


def ensure_rendered(folder: Path, recipe: Recipe, annotations: Sequence[str]) -> None:
    """Write a data set to `folder` if that is missing; its annotation file has one of the given names.

    Raises FileExistsError if the folder exists but wasn't written with this recipe.
    """
    if folder.parent.exists() and not folder.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent))
    remove_abandoned(folder)
    if not folder.exists():
        with suppress(FileExistsError):  # written by another process meanwhile, checked below
            write_synthpedes(folder, recipe)
    try:
        found = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != recipe.plain() or not any((folder / name).is_file() for name in annotations):
        raise FileExistsError(
            f"{folder} exists but is not this version's {folder.name}: move or delete it, and it will be rendered again"
        )
