"""SynthPEDES: drawn pedestrians with English captions, the data set that RDE brings along.

Layout and file format are those of CUHK-PEDES, so that the same loader reads both.
"""

from contextlib import suppress
from pathlib import Path

from .sheet import contact_sheet
from .write import ANNOTATIONS, write_synthpedes

FOLDER = "SynthPEDES"

# The default set: 2,400 training pairs of image and caption.
IDENTITIES = {"train": 300, "val": 100, "test": 200}
IMAGES_PER_IDENTITY = {"train": 4, "val": 3, "test": 3}
CAPTIONS_PER_IMAGE = 2
ATTRIBUTES_NAMED = (6, 10)
DIFFICULTY = 0.35
SEED = 2024

__all__ = ["contact_sheet", "ensure_synthpedes", "write_synthpedes"]


def ensure_synthpedes(root_dir: Path) -> Path:
    """Return `root_dir`/SynthPEDES, and write the default set there first if it is missing.

    Raises FileExistsError if there is such a folder that holds no reid_raw.json.
    """
    folder = Path(root_dir) / FOLDER
    if not folder.exists():
        with suppress(FileExistsError):  # a second process may be faster: its set is looked at below
            write_synthpedes(
                folder,
                identities=IDENTITIES,
                images_per_identity=IMAGES_PER_IDENTITY,
                captions_per_image=CAPTIONS_PER_IMAGE,
                seed=SEED,
                difficulty=DIFFICULTY,
                attributes_named=ATTRIBUTES_NAMED,
            )
    if not (folder / ANNOTATIONS).is_file():
        raise FileExistsError(
            f"{folder} exists but holds no {ANNOTATIONS}, so it is not a complete SynthPEDES: "
            "move it away or delete it, and it will be written anew"
        )
    return folder
