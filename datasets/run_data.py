"""All data of a run, checked before it starts, and the facts about them in its configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.annotations import Split, build_splits, read_annotations
from datasets.catalogue import short_name
from datasets.check import check_splits, odd_entries
from datasets.corrections import NO_EDITS, Edits, read_corrections
from datasets.exclusion import NO_EXCLUSIONS, read_excluded
from datasets.gallery import Gallery, open_gallery
from datasets.loaders import Inputs, LoadingSettings, TrainingPairs, open_training_images
from datasets.noise import DRAWN, Noise, digest, find_noise
from datasets.settings import DataSettings
from datasets.tokenizer import count_cut
from utils.errors import OptionError
from utils.files import atomic_write
from utils.log import status
from utils.run_folder import RunFolder


class RunData(NamedTuple):
    """A run's data.

    Attributes:
        validation, test: the splits for selection and test; the same one without a validation split.
        cut: number of truncated captions by split.
        remarks: findings about the annotations, for the log.
        edits: corrections by hand.
    """

    pairs: TrainingPairs
    noise: Noise
    validation: Gallery
    test: Gallery
    cut: dict[str, int]
    remarks: list[str]
    edits: Edits = NO_EDITS

    @property
    def facts(self) -> dict[str, Any]:
        """Noise, excluded pairs, corrections and unreadable images, for the run's configuration."""
        skipped = self.pairs.skipped()
        return {
            "noise_index": self.noise.about,
            "excluded": _about(self.pairs.excluded),
            "corrections": self.edits.about,
            "skipped_images": list(skipped),
            "skipped_pairs": sorted(pair for pairs in skipped.values() for pair in pairs),
        }

    def check(self, run: RunFolder) -> None:
        """Check that a resumed run has the same captions, pairs and images as at its start.

        Raises:
            OptionError: they differ from those in its configuration.
        """
        facts = {"excluded": _about(NO_EXCLUSIONS), "corrections": NO_EDITS.about, **run.facts()}
        kinds = {
            "noise_index": "noise index is",
            "excluded": "excluded pairs are",
            "corrections": "corrected captions are",
        }
        for name, what in kinds.items():
            recorded, found = facts.get(name), self.facts[name]
            if not isinstance(recorded, dict) or recorded.get("sha256") != found["sha256"]:
                raise OptionError(f"the {what} not the run's own: {run.config} names {recorded}, found {found}")
        recorded, found = facts.get("skipped_pairs", []), self.facts["skipped_pairs"]
        if recorded != found:
            raise OptionError(f"the unreadable images changed since the run started: pairs {recorded}, now {found}")

    def keep_noise(self, run_dir: Path) -> None:
        """Save drawn noise, which isn't in a file yet, in the run's folder."""
        if self.noise.origin == DRAWN:
            with atomic_write(run_dir / "noise_index.npy") as partial, partial.open("wb") as stream:
                np.save(stream, self.noise.permutation)


def _about(excluded: np.ndarray) -> dict[str, int | str]:
    return {"pairs": len(excluded), "sha256": digest(excluded)}


class ReadData(NamedTuple):
    """The data that are read before the model is built; no image is decoded yet."""

    settings: DataSettings
    splits: dict[str, Split]
    noise: Noise
    excluded: np.ndarray
    edits: Edits
    remarks: list[str]


def read_data(settings: DataSettings) -> ReadData:
    """Read and check annotations, noise and excluded pairs, and check that the images exist.

    Raises:
        DataError, OptionError: something is missing, broken or inconsistent.
    """
    name = settings.dataset_name
    place, entries = read_annotations(name, Path(settings.root_dir), settings.split_all)
    names = dict.fromkeys(("train", settings.val_dataset, "test"))
    splits = build_splits(place, entries, names, incomplete=settings.on_bad_image == "skip")
    split = splits["train"]
    noise = find_noise(short_name(name), len(split.captions), settings.noisy_rate, settings.noisy_file)
    excluded = NO_EXCLUSIONS
    if settings.exclude:
        excluded = read_excluded(Path(settings.exclude), split, noise.permutation)
    edits = NO_EDITS
    if settings.corrections:
        edits = read_corrections(Path(settings.corrections), split, noise.permutation)
        excluded = np.union1d(excluded, sorted(edits.excluded)).astype(np.int64)
    sizes = {name: size for name, size in place.dataset.sizes.items() if name in splits}
    remarks = [finding.line for finding in (*odd_entries(entries), *check_splits(splits, sizes))]
    return ReadData(settings, splits, noise, excluded, edits, remarks)


def open_data(read: ReadData, inputs: Inputs, loading: LoadingSettings, *, resumed: bool) -> RunData:
    """Decode all images, to find broken ones before training, and tokenize all captions.

    Args:
        resumed: see `open_training_images`.

    Raises:
        DataError, OptionError: something is broken or inconsistent.
    """
    settings, splits, tokenizer, device = read.settings, read.splits, inputs.tokenizer, loading.device
    split, noise, excluded, edits = splits["train"], read.noise, read.excluded, read.edits
    test = open_gallery(settings, inputs, "test", splits["test"], device)
    validation = open_gallery(settings, inputs, "val", splits["val"], device) if "val" in splits else test
    images = open_training_images(settings, inputs.size, split, resumed=resumed)
    status(f"tokenizing {len(split.captions):,} captions")
    ids = tokenizer(split.captions, inputs.text_length)
    words = {name: getattr(tokenizer, name) for name in ("mask", "words") if hasattr(tokenizer, name)}
    loading = replace(loading, **words)
    pairs = TrainingPairs(split, images, ids, noise.permutation, loading, excluded)
    edited_ids = tokenizer(list(edits.captions.values()), inputs.text_length)
    pairs.correct(dict(zip(edits.captions, edited_ids, strict=True)))
    if not len(pairs.training_batches(0)):
        persons = settings.batch_size // settings.num_instance
        raise OptionError(f"--batch_size {settings.batch_size}: a batch needs {persons} persons with sampler identity")
    cut = {"train": count_cut(tokenizer, split.captions, ids)}
    cut["train"] += count_cut(tokenizer, list(edits.captions.values()), edited_ids)
    cut |= {gallery.name: count_cut(tokenizer, gallery.split.captions, gallery.ids) for gallery in (validation, test)}
    return RunData(pairs, noise, validation, test, cut, read.remarks, edits)
