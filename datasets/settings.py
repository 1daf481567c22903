"""Settings of data and loading. No heavy imports, for a fast `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.errors import OptionError
from utils.registry import Registry
from utils.settings import FLAGS, option, settings

DATASETS = Registry(
    "data set",
    {
        "CUHK-PEDES": "datasets.published",
        "ICFG-PEDES": "datasets.published",
        "RSTPReid": "datasets.published",
        "SynthPEDES": "datasets.published",
    },
)
SAMPLERS = ("random", "identity")


def own_annotations(dataset_name: str) -> Path | None:
    """The user's annotation file or folder that `--dataset_name` names; None for a data set's name.

    A folder needs a slash, as in ./people; else it would be taken for a data set's name.
    """
    return Path(dataset_name) if FLAGS["dataset_name"].names_path(dataset_name) else None


def unknown_data_set(dataset_name: str) -> OptionError:
    """The error for a `--dataset_name` that is neither a known data set nor a path on disk."""
    known = f"choose from {', '.join(DATASETS)}, or give an annotation file"
    if Path(dataset_name).is_dir():
        return OptionError(f"--dataset_name {dataset_name}: {known} (a folder needs a slash in its path)")
    path = Path(dataset_name)
    missing = "no such file; " if path.suffix or len(path.parts) > 1 else ""
    return OptionError(f"--dataset_name {dataset_name}: {missing}{known}")


@settings("data")
@dataclass(frozen=True)
class DataSettings:
    """Data, noise and batching."""

    dataset_name: str = option(
        "CUHK-PEDES",
        "CUHK-PEDES, ICFG-PEDES, RSTPReid, SynthPEDES, a plugin's, or your annotation file or folder",
        path="or folder or name",
        tested=True,
    )
    root_dir: str = option("data", "folder containing the data set's folder", path=True, tested=True, resumable=True)
    image_cache: str = option(
        "",
        "folder for decoded images; default: beside the data, else the user's cache folder",
        path=True,
        tested=True,
        resumable=True,
    )
    on_bad_image: str = option(
        "error",
        "a training image that is missing or can't be read: stop before training, or exclude its pairs",
        choices=("error", "skip"),
    )
    split_all: str = option(
        "",
        "train: read entries without a split as training pairs, and test on some of their persons if there is no "
        "test split",
        choices=("", "train"),
        tested=True,
    )
    val_dataset: str = option("val", "split on which the best checkpoint is selected", choices=("val", "test"))
    noisy_rate: float = option(
        0.2, "share of training captions to shuffle; 0 by default for your own annotation file", low=0, high=1
    )
    noisy_file: str = option(
        "", "noise index (.npy); default: noiseindex/<dataset_name>_<noisy_rate>.npy, else drawn", path=True
    )
    exclude: str = option(
        "", "CSV of training pairs to exclude, marked by hand; python -m tools.audit writes one", path=True
    )
    corrections: str = option(
        "",
        "CSV of training pairs with edited captions, which replace the originals; marked pairs are excluded",
        path=True,
    )
    batch_size: int = option(128, "pairs in a training batch; several processes share them", low=2)
    test_batch_size: int = option(
        512, "batch size of images or captions in evaluation", low=1, tested=True, resumable=True
    )
    num_workers: int = option(
        8, "data-loading processes per training process; 0: none", low=0, tested=True, resumable=True
    )
    sampler: str = option("random", "order of the training pairs", choices=SAMPLERS)
    num_instance: int = option(4, "pairs of each identity in a batch (sampler identity)", low=1, only=("identity",))
    img_aug: bool = option(False, "crop and erase training images (the flip is always on)")
    txt_aug: bool = option(False, "mask, replace and delete words of training captions")


@settings("data")
@dataclass(frozen=True)
class MaskingSettings:
    """Masking of words for objectives that predict them."""

    masked_token_rate: float = option(
        0.8, "share of the words selected for mlm that are replaced by the mask token", low=0, high=1, only=("mlm",)
    )
    masked_token_unchanged_rate: float = option(
        0.1, "share of them that are left unchanged", low=0, high=1, only=("mlm",)
    )
    mlm_captions: str = option(
        "masked",
        "captions for the objectives other than mlm: masked, as in IRRA, or whole (a second pass of the text tower)",
        choices=("masked", "whole"),
        only=("mlm",),
    )
