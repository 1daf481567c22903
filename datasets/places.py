"""The data sets: where each lies on disk, what its files are called, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets.synthpedes import ensure_synthpedes
from utils.distributed import one_first
from utils.errors import DataError, OptionError


@dataclass(frozen=True)
class Description:
    """Where a data set keeps what.

    Attributes:
        files: names the annotation file goes by; the first that exists is read.
        first_id: the lowest training id, from which they run without gaps; None where any numbers will do.
        reference: where the data come from.
        sizes: images, captions and persons of each split, as published.
        outdated: captions and persons of each split in a release that was replaced.
    """

    files: tuple[str, ...]
    first_id: int | None
    reference: str
    sizes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    outdated: dict[str, tuple[int, int]] = field(default_factory=dict)


DATASETS = {
    "CUHK-PEDES": Description(
        files=("reid_raw.json",),
        first_id=1,
        reference="Li et al., CVPR 2017",
        sizes={"train": (34054, 68126, 11003), "val": (3078, 6158, 1000), "test": (3074, 6156, 1000)},
    ),
    "ICFG-PEDES": Description(
        files=("ICFG-PEDES.json", "ICFG_PEDES.json"),
        first_id=0,
        reference="Ding et al., 2021",
        sizes={"train": (34674, 34674, 3102), "test": (19848, 19848, 1000)},
    ),
    "RSTPReid": Description(
        files=("data_captions.json",),
        first_id=0,
        reference="Zhu et al., ACM MM 2021",
        sizes={"train": (18505, 37010, 3701), "val": (1000, 2000, 200), "test": (1000, 2000, 200)},
        outdated={"train": (39010, 3901), "val": (1000, 100), "test": (1000, 100)},
    ),
    "SynthPEDES": Description(
        files=("reid_raw.json",),
        first_id=1,
        reference="rendered by datasets/synthpedes",
        sizes={"train": (1200, 2400, 300), "val": (300, 600, 100), "test": (300, 600, 75)},
    ),
}
# Annotation files of anybody's own, given by path.
OWN = Description(files=(), first_id=None, reference="")


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
