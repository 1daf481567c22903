"""SynthPEDES: drawn pedestrians with English captions, the built-in data set.

It has the layout and file format of CUHK-PEDES, so that the same loader reads both.
"""

import json
from contextlib import suppress
from pathlib import Path

from .sheet import contact_sheet
from .write import ANNOTATIONS, RECIPE_FILE, Recipe, write_synthpedes

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

__all__ = ["ANNOTATIONS", "RECIPE", "Recipe", "contact_sheet", "ensure_synthpedes", "write_synthpedes"]


def ensure_synthpedes(root_dir: Path) -> Path:
    """Return `root_dir`/SynthPEDES, writing the default set there if it is missing.

    Raises FileExistsError if that folder exists but wasn't written with this recipe.
    """
    folder = Path(root_dir) / FOLDER
    if not folder.exists():
        with suppress(FileExistsError):  # written by another process meanwhile, checked below
            write_synthpedes(folder, RECIPE)
    try:
        found = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != RECIPE.plain() or not (folder / ANNOTATIONS).is_file():
        raise FileExistsError(
            f"{folder} exists but is not this version's SynthPEDES: move or delete it, and it will be rendered again"
        )
    return folder
