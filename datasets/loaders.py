"""Batches for training, scoring and evaluation: uint8 images, draws of the augmentation, token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.annotations import Split
from datasets.augmentation import apply_image, augment_text, draw_image, normalise
from datasets.exclusion import NOTHING_EXCLUDED
from datasets.images import CachedImages, image_cache_dir, open_images
from datasets.samplers import identity_order, random_order
from datasets.tokenizer import Tokenizer

# Purposes that draw from generators of their own in one epoch.
SCORING, TRAINING, _ORDER = 0, 1, 2


@dataclass(frozen=True)
class Batch:
    """B training pairs, on the device.

    Attributes:
        images: (B, 3, H, W) augmented and normalised.
        ids: (B, L) token ids, L that of the longest caption in the batch.
        pids: (B,) identities of the images.
        pairs: (B,) positions in the training split.
    """

    images: Tensor
    ids: Tensor
    pids: Tensor
    pairs: Tensor


def trim(ids: np.ndarray) -> np.ndarray:
    """(B, L) ids without the columns behind the last EOS; id 0 pads, but it is also that of a "!" within a word."""
    return ids[:, : int(ids.argmax(axis=1).max()) + 1]


@dataclass(frozen=True)
class LoadingSettings:
    """How training pairs become batches.

    Attributes:
        img_aug, txt_aug: crop and erase images; mask, replace and remove words. The flip is always drawn.
        sampler: one of `samplers.SAMPLERS`; num_instance belongs to "identity" and divides batch_size.
        num_workers: processes that load; 0 loads in this one.
    """

    batch_size: int
    device: torch.device
    img_aug: bool = False
    txt_aug: bool = False
    sampler: str = "random"
    num_instance: int = 4
    num_workers: int = 0
    seed: int = 1


class _PairBatches(Dataset):
    """Whole batches, so that one item is a few large arrays and not B small ones."""

    def __init__(self, data: TrainingPairs, order: np.ndarray, epoch: int, purpose: int) -> None:
        self.data, self.order, self.epoch, self.purpose = data, order, epoch, purpose
        self.batch_size = data.settings.batch_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, ...]:
        data = self.data
        pairs = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        ids, draws = data.ids[pairs], np.empty((len(pairs), 7), np.int32)
        for row, pair in enumerate(pairs):
            rng = np.random.default_rng((data.settings.seed, self.epoch, self.purpose, int(pair)))
            draws[row] = draw_image(rng, data.images.shape[2:], data.settings.img_aug)
            if data.settings.txt_aug:
                ids[row] = augment_text(ids[row], rng)
        images = data.images[data.image_of_pair[pairs]]
        return images, draws, trim(ids), data.pids[pairs], pairs


class TrainingPairs:
    """The training split as pairs, with the noise in it.

    Args:
        split: the training split.
        images: the split's images.
        ids: (C, L) token ids of the split's captions.
        permutation: π (C,): pair i's caption is caption π(i).
        excluded: positions of pairs to leave out; the N others are counted anew from 0.
    """

    def __init__(
        self,
        split: Split,
        images: CachedImages,
        ids: np.ndarray,
        permutation: np.ndarray,
        settings: LoadingSettings,
        excluded: np.ndarray = NOTHING_EXCLUDED,
    ) -> None:
        self.split, self.images, self.settings = split, images, settings
        self.permutation, self.excluded = permutation, excluded
        kept = np.setdiff1d(np.arange(len(permutation)), excluded)
        self.ids = ids[permutation[kept]]
        self.image_of_pair = split.caption_images[kept]
        self.pids = split.caption_pids[kept]
        self.truly_clean = permutation[kept] == kept

    def __len__(self) -> int:
        return len(self.ids)

    def scoring_batches(self, epoch: int) -> Batches:
        """Every pair once in random order, augmented as in training: the CCD pass, whatever the sampler."""
        order = random_order(len(self), self._order_rng(epoch, SCORING))
        return Batches(_PairBatches(self, order, epoch, SCORING))

    def training_batches(self, epoch: int) -> Batches:
        """The batches of a training epoch, in the sampler's order."""
        rng, settings = self._order_rng(epoch, TRAINING), self.settings
        if settings.sampler == "identity":
            order = identity_order(self.pids, settings.batch_size, settings.num_instance, rng)
        else:
            order = random_order(len(self), rng)
        return Batches(_PairBatches(self, order, epoch, TRAINING))

    def _order_rng(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.settings.seed, epoch, _ORDER, purpose))


class Batches:
    """An iterable of `Batch`, with a length; augmentation happens on the device."""

    def __init__(self, dataset: _PairBatches) -> None:
        self.device = dataset.data.settings.device
        self._loader = _loader(dataset, dataset.data.settings.num_workers, self.device)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for images, draws, ids, pids, pairs in self._loader:
            images = apply_image(_send(images, self.device), _send(draws, self.device))
            yield Batch(images, _send(ids, self.device).long(), _send(pids, self.device), pairs)


class _Slices(Dataset):
    """Images in order, a batch at a time."""

    def __init__(self, rows: CachedImages, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.rows[number * self.batch_size : (number + 1) * self.batch_size]


class Gallery:
    """An evaluation split: each image and each caption once.

    Args:
        name: of the split, for tables.
        images: of the split.
        ids: (C, L) token ids.
    """

    def __init__(
        self,
        name: str,
        split: Split,
        images: CachedImages,
        ids: np.ndarray,
        *,
        batch_size: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.name, self.split, self.images, self.ids = name, split, images, ids
        self.image_pids, self.caption_pids = split.image_pids, split.caption_pids
        self.batch_size, self.num_workers, self.device = batch_size, num_workers, device

    def image_batches(self) -> Iterator[Tensor]:
        """(B, 3, H, W) normalised images, in the split's order."""
        for images in _loader(_Slices(self.images, self.batch_size), self.num_workers, self.device):
            yield normalise(_send(images, self.device))

    def text_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B,) positions and (B, L) token ids, captions of like length together, so that L stays small."""
        order = np.argsort(self.ids.argmax(axis=1), kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield torch.from_numpy(rows), _send(torch.from_numpy(trim(self.ids[rows])), self.device).long()


def open_gallery(options: Mapping[str, Any], name: str, split: Split, device: torch.device) -> Gallery:
    """The split `name` with its images and token ids.

    Args:
        options: of the run; read are `dataset_name`, `root_dir`, `img_size`, `image_cache`, `text_length`,
            `test_batch_size` and `num_workers`.

    Raises:
        DataError: as `open_images`.
    """
    images = open_images(split.images, options["img_size"], image_cache_dir(options))
    ids = Tokenizer()(split.captions, options["text_length"])
    workers = options["num_workers"]
    return Gallery(name, split, images, ids, batch_size=options["test_batch_size"], num_workers=workers, device=device)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _loader(dataset: Dataset, num_workers: int, device: torch.device) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=min(num_workers, len(dataset)),
        pin_memory=device.type == "cuda",
    )
