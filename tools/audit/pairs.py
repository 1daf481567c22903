"""A run's training pairs: images, and captions as shuffled by its noise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.annotations import Split, read_splits
from datasets.catalogue import locate, short_name
from datasets.corrections import NO_EDITS, read_corrections
from datasets.exclusion import as_text
from datasets.noise import find_noise
from options import check_root_dir, resolve
from utils.errors import DataError
from utils.run_folder import RunFolder


@dataclass(frozen=True)
class Pairs:
    """A run's training pairs.

    Attributes:
        split: the training split.
        imgs: the folder that image paths are relative to.
        permutation: pair i has caption permutation[i].
        corrected: corrected captions by pair.
    """

    split: Split
    imgs: Path
    permutation: np.ndarray
    corrected: Mapping[int, str] = field(default_factory=dict)

    def file(self, pair: int) -> Path:
        """Path of a pair's image."""
        return self.split.images[self.split.caption_images[pair]]

    def image(self, pair: int) -> str:
        """Path of a pair's image as in the annotation file."""
        return as_text(Path(os.path.relpath(self.file(pair), self.imgs)).as_posix())

    def person(self, pair: int) -> int:
        """The annotation file's person id of a pair's image."""
        return int(self.split.person_ids[self.split.caption_pids[pair]])

    def caption(self, pair: int) -> str:
        """A pair's caption as used in training."""
        return as_text(self.corrected.get(pair, self.original(pair)))

    def original(self, pair: int) -> str:
        """A pair's caption before any correction."""
        return self.split.captions[self.permutation[pair]]


def read_pairs(run_dir: Path, root_dir: str | None, count: int) -> Pairs:
    """Read a run's training data.

    Args:
        root_dir: folder containing the data; default: the run's.
        count: number of pairs in the run's history.

    Raises:
        OptionError, DataError: the data are missing, or differ from the run's.
    """
    check_root_dir(root_dir)
    run = RunFolder(run_dir)
    options = resolve({"config": str(run.config), **({"root_dir": root_dir} if root_dir else {})})
    name, root = options.dataset_name, Path(options.root_dir)
    split = read_splits(name, root, ["train"], options.split_all, incomplete=True)["train"]
    if len(split.captions) != count:
        raise DataError(f"{run_dir} was trained on {count:,} pairs, {name} in {root} has {len(split.captions):,}")
    noise = find_noise(short_name(name), count, options.noisy_rate, options.noisy_file)
    recorded = run.facts().get("noise_index")
    if not isinstance(recorded, dict) or recorded.get("sha256") != noise.sha256:
        raise DataError(f"the noise index is not the run's own: {run.config} names {recorded}, found {noise.about}")
    edits = NO_EDITS
    if options.corrections:
        edits = read_corrections(Path(options.corrections), split, noise.permutation)
        if (recorded := run.facts().get("corrections")) != edits.about:
            names = f"{run.config} names {recorded}, found {edits.about}"
            raise DataError(f"the corrections are not the run's own: {names}")
    return Pairs(split, locate(name, root).imgs, noise.permutation, edits.captions)
