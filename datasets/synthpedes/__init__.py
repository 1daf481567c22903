"""SynthPEDES: drawn pedestrians with English captions, the data set that RDE brings along.

Layout and file format are those of CUHK-PEDES, so that the same loader reads both.
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
    """Return `root_dir`/SynthPEDES, and write the default set there first if it is missing.

    Raises FileExistsError if there is such a folder that this recipe did not write.
    """
    folder = Path(root_dir) / FOLDER
    if not folder.exists():
        with suppress(FileExistsError):  # a second process may be faster: its set is looked at below
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
