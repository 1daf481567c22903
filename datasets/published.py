"""The data sets of the paper, and the built-in one: file names and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from datasets.catalogue import DataSet
from datasets.settings import DATASETS
from datasets.synthpedes import ensure_synthpedes
from utils.distributed import main_process_first
from utils.errors import DataError


@DATASETS.register("CUHK-PEDES")
class CUHKPEDES(DataSet):
    """Li et al., CVPR 2017."""

    files = ("reid_raw.json",)
    first_id = 1
    reference = "Li et al., CVPR 2017"
    as_listed = True
    sizes: ClassVar = {"train": (34054, 68126, 11003), "val": (3078, 6158, 1000), "test": (3074, 6156, 1000)}


@DATASETS.register("ICFG-PEDES")
class ICFGPEDES(DataSet):
    """Ding et al., 2021; no validation split."""

    files = ("ICFG-PEDES.json", "ICFG_PEDES.json")
    first_id = 0
    reference = "Ding et al., 2021"
    as_listed = True
    sizes: ClassVar = {"train": (34674, 34674, 3102), "test": (19848, 19848, 1000)}


@DATASETS.register("RSTPReid")
class RSTPReid(DataSet):
    """Zhu et al., ACM MM 2021."""

    files = ("data_captions.json",)
    first_id = 0
    reference = "Zhu et al., ACM MM 2021"
    as_listed = True
    sizes: ClassVar = {"train": (18505, 37010, 3701), "val": (1000, 2000, 200), "test": (1000, 2000, 200)}
    outdated: ClassVar = {"train": (39010, 3901), "val": (1000, 100), "test": (1000, 100)}


@DATASETS.register("SynthPEDES")
class SynthPEDES(DataSet):
    """The built-in data set, rendered by `datasets.synthpedes` on first use."""

    files = ("reid_raw.json",)
    first_id = 1
    reference = "rendered by datasets/synthpedes"
    sizes: ClassVar = {"train": (1200, 2400, 300), "val": (300, 600, 100), "test": (300, 600, 75)}

    def prepare(self, root_dir: Path) -> None:
        """See `DataSet.prepare`."""
        try:
            with main_process_first():
                ensure_synthpedes(root_dir)
        except OSError as error:
            raise DataError(f"SynthPEDES can't be written: {error}") from None
