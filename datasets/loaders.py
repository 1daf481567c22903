"""Batches for training and scoring: images with augmentation, and token ids."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.annotations import Split
from datasets.augmentation import apply_image, augment_text, draw_image
from datasets.exclusion import NO_EXCLUSIONS
from datasets.image_cache import BrokenImagesError, CachedImages, image_cache_dir, open_images
from datasets.masking import Masking, mask_words
from datasets.samplers import identity_order, random_order
from datasets.settings import DataSettings
from datasets.tokenizer import MASK, CaptionTokenizer
from utils.errors import DataError
from utils.ranks import share

# Keys of the random generators within an epoch; 3 is CCD's (solver/correspondence/ccd.py), 4 processor/run.py's.
SCORING, TRAINING, _ORDER = 0, 1, 2


class Inputs(NamedTuple):
    """Input format of a model: image size (height, width), text length in tokens, and tokenizer."""

    size: tuple[int, int]
    text_length: int
    tokenizer: CaptionTokenizer


@dataclass(frozen=True)
class Batch:
    """B training pairs on the device; in training each process holds only its share of the images and captions.

    Attributes:
        images: (B or a share of it, 3, H, W) augmented and normalised.
        ids: (likewise, L) token ids, as long as the longest of these captions.
        pids: (B,) identities of the images.
        pairs: (B,) indices in the training split.
        labels: (like ids) the original ids of masked words, 0 elsewhere; None without masking.
        masked: (like ids) the masked ids, if `ids` are unmasked; else None.
    """

    images: Tensor
    ids: Tensor
    pids: Tensor
    pairs: Tensor
    labels: Tensor | None = None
    masked: Tensor | None = None


def trim(ids: np.ndarray, step: int = 1) -> np.ndarray:
    """Cut the columns after the last EOS from (B, L) ids, where id 0 is padding but also a "!" within a word.

    The new length is rounded up to a multiple of `step`, up to L.
    """
    length = int(ids.argmax(axis=1).max(initial=0)) + 1
    return ids[:, : -(-length // step) * step]


@dataclass(frozen=True)
class LoadingSettings:
    """Loading of training pairs in batches.

    Attributes:
        img_aug, txt_aug: crop and erase images; mask, replace and remove words. Images are always flipped at random.
        sampler: one of `settings.SAMPLERS`; "identity" uses num_instance, which divides batch_size.
        num_workers: number of worker processes; 0 loads in this process.
        masking: masking of words in training batches, whose captions then aren't trimmed.
        mask, words: the tokenizer's; see `augment_text`.
        length_step: captions are trimmed to a multiple of this many tokens.
    """

    batch_size: int
    device: torch.device
    img_aug: bool = False
    txt_aug: bool = False
    sampler: str = "random"
    num_instance: int = 4
    num_workers: int = 0
    seed: int = 1
    masking: Masking | None = None
    mask: int = MASK
    words: int = MASK
    length_step: int = 1

    @classmethod
    def of(cls, settings: DataSettings, device: torch.device, seed: int, masking: Masking | None) -> LoadingSettings:
        """Build from a run's flags."""
        shared = {item.name for item in fields(cls)} & {item.name for item in fields(settings)}
        values = {name: getattr(settings, name) for name in shared}
        return cls(**values, device=device, seed=seed, masking=masking)


class _PairBatches(Dataset[Any]):
    """Whole batches as items: a few large arrays instead of B small ones.

    With several processes, each gets its share of every training batch, but whole batches for scoring.
    """

    def __init__(self, data: TrainingPairs, order: np.ndarray, epoch: int, purpose: int) -> None:
        self.data, self.order, self.epoch, self.purpose = data, order, epoch, purpose
        self.starts = range(0, len(order), data.settings.batch_size)
        if purpose == SCORING:
            self.starts = self.starts[share(len(self.starts))]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[np.ndarray | None, ...]:
        data, start = self.data, self.starts[number]
        pairs = self.order[start : start + data.settings.batch_size]
        loaded = pairs[share(len(pairs))] if self.purpose == TRAINING else pairs
        masking = data.settings.masking if self.purpose == TRAINING else None
        ids, draws = data.ids[loaded], np.empty((len(loaded), 7), np.int32)
        masked, labels = np.empty_like(ids), np.empty_like(ids)
        for row, pair in enumerate(loaded):
            rng = np.random.default_rng((data.settings.seed, self.epoch, self.purpose, int(pair)))
            draws[row] = draw_image(rng, data.images.shape[2:], data.settings.img_aug)
            if data.settings.txt_aug:
                ids[row] = augment_text(ids[row], rng, data.settings.mask, data.settings.words)
            if masking:
                drawn = mask_words(ids[row], rng, masking, data.settings.mask, data.settings.words)
                masked[row], labels[row] = drawn
        images, pids = data.images[data.image_of_pair[loaded]], data.pids[pairs]
        if masking is None:
            return images, draws, trim(ids, data.settings.length_step), pids, pairs, None, None
        if masking.for_all_objectives:
            return images, draws, masked, pids, pairs, labels, None
        return images, draws, ids, pids, pairs, labels, masked


class TrainingPairs:
    """The pairs of the training split, with injected noise.

    Args:
        split: the training split.
        images: the split's images.
        ids: (C, L) token ids of the split's captions.
        permutation: (C,) π: pair i has caption π(i).
        excluded: indices of pairs to exclude.

    Attributes:
        truly_clean: (C,) bool; also True for captions moved to another image of the same person, and for corrected
            ones.
        usable: (C,) bool; False for excluded pairs and those with an unreadable image, which are in no batch.
    """

    def __init__(
        self,
        split: Split,
        images: CachedImages,
        ids: np.ndarray,
        permutation: np.ndarray,
        settings: LoadingSettings,
        excluded: np.ndarray = NO_EXCLUSIONS,
    ) -> None:
        self.split, self.images, self.settings = split, images, settings
        self.permutation, self.excluded = permutation, excluded
        self.ids = ids[permutation]
        self.image_of_pair = split.caption_images
        self.pids = split.caption_pids
        self.truly_clean = self.pids[permutation] == self.pids
        self.usable = ~np.isin(split.caption_images, list(images.broken))
        self.usable[excluded] = False

    def correct(self, ids: Mapping[int, np.ndarray]) -> None:
        """Replace the captions of some pairs by these (L,) token ids, and count the pairs as clean."""
        for pair, caption_ids in ids.items():
            self.ids[pair] = caption_ids
            self.truly_clean[pair] = True

    def __len__(self) -> int:
        return len(self.ids)

    def scoring_batches(self, epoch: int) -> Batches:
        """All pairs once in random order, whatever the sampler, augmented as in training, for the scoring pass."""
        usable = np.flatnonzero(self.usable)
        order = usable[random_order(len(usable), self._order_rng(epoch, SCORING))]
        return Batches(_PairBatches(self, order, epoch, SCORING))

    def training_batches(self, epoch: int) -> Batches:
        """Batches of a training epoch, in the sampler's order."""
        rng, settings, usable = self._order_rng(epoch, TRAINING), self.settings, np.flatnonzero(self.usable)
        if settings.sampler == "identity":
            order = identity_order(self.pids[usable], settings.batch_size, settings.num_instance, rng)
        else:
            order = random_order(len(usable), rng)
        return Batches(_PairBatches(self, usable[order], epoch, TRAINING))

    def skipped(self) -> dict[str, list[int]]:
        """Pairs whose image can't be read, by reason."""
        return {reason: _pairs_of(self.split, number) for number, reason in self.images.broken.items()}

    def _order_rng(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.settings.seed, epoch, _ORDER, purpose))


class Batches:
    """A sized iterable of `Batch`; augments on the device."""

    def __init__(self, dataset: _PairBatches) -> None:
        self.device = dataset.data.settings.device
        self._loader = loader(dataset, dataset.data.settings.num_workers, self.device)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for images, draws, ids, pids, pairs, *words in self._loader:
            images = apply_image(send(images, self.device), send(draws, self.device))
            labels, masked = (None if part is None else send(part, self.device).long() for part in words)
            yield Batch(images, send(ids, self.device).long(), send(pids, self.device), pairs, labels, masked)


def open_training_images(settings: DataSettings, size: tuple[int, int], split: Split, *, resumed: bool) -> CachedImages:
    """The training split's images.

    Args:
        resumed: the run started without the unreadable images and must continue without them.

    Raises:
        DataError: see `open_images`; a broken image, unless `on_bad_image` is "skip"; or no readable image at all.
    """
    skip = settings.on_bad_image == "skip"
    try:
        folder = image_cache_dir(settings, split.images, size)
        images = open_images(split.images, size, folder, skip_broken=skip, retry_broken=not resumed)
    except BrokenImagesError as error:
        pairs = ", ".join(map(str, _pairs_of(split, min(error.broken))))
        raise DataError(f"{error}; training pairs {pairs} (--on_bad_image skip skips them)") from None
    if len(images.broken) == len(images):
        raise DataError(f"none of the training images can be read: {images.broken[0]}")
    return images


def _pairs_of(split: Split, image: int) -> list[int]:
    """Indices of an image's pairs."""
    return np.flatnonzero(split.caption_images == image).tolist()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device asynchronously."""
    return tensor.to(device, non_blocking=True)


def loader(dataset: Dataset[Any], num_workers: int, device: torch.device) -> DataLoader:
    """A loader of whole batches, with at most `num_workers` processes."""
    workers = min(num_workers, len(dataset))  # type: ignore[arg-type]
    # Forked workers start immediately; Python 3.14's default method would import everything again in every pass.
    method = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method,
        pin_memory=device.type == "cuda",
    )
