"""Batches of an evaluation split: its images in order, and its captions by length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations import Split
from datasets.augmentation import normalise
from datasets.image_cache import CachedImages, image_cache_dir, open_images
from datasets.loaders import Inputs, loader, send, trim
from datasets.settings import DataSettings
from utils.ranks import share


class _Slices(Dataset[Any]):
    """This process's share of the images, in order, as batches."""

    def __init__(self, rows: CachedImages, batch_size: int) -> None:
        self.rows, self.batches = rows, _batches_of_share(len(rows), batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.rows[self.batches[number]]


class GalleryLoading(NamedTuple):
    """Loading of an evaluation split in batches."""

    batch_size: int
    num_workers: int
    device: torch.device


class Gallery:
    """An evaluation split: each image and caption once, divided among the processes.

    Args:
        name: the split's name, for tables.
        images: the split's images.
        ids: (C, L) token ids.
    """

    def __init__(self, name: str, split: Split, images: CachedImages, ids: np.ndarray, loading: GalleryLoading) -> None:
        self.name, self.split, self.images, self.ids, self.loading = name, split, images, ids, loading
        self.image_pids, self.caption_pids = split.image_pids, split.caption_pids

    def image_batches(self) -> Iterator[Tensor]:
        """(B, 3, H, W) normalised images, in the split's order."""
        batch_size, num_workers, device = self.loading
        for images in loader(_Slices(self.images, batch_size), num_workers, device):
            yield normalise(send(images, device))

    def text_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B,) positions and (B, L) token ids; captions are batched by length, so that L stays small."""
        order = np.argsort(self.ids.argmax(axis=1), kind="stable")
        for batch in _batches_of_share(len(order), self.loading.batch_size):
            rows = order[batch]
            yield torch.from_numpy(rows), send(torch.from_numpy(trim(self.ids[rows])), self.loading.device).long()


def open_gallery(settings: DataSettings, inputs: Inputs, name: str, split: Split, device: torch.device) -> Gallery:
    """The split `name` with its images and token ids.

    Raises:
        DataError: see `open_images`.
    """
    images = open_images(split.images, inputs.size, image_cache_dir(settings, split.images, inputs.size))
    ids = inputs.tokenizer(split.captions, inputs.text_length)
    loading = GalleryLoading(settings.test_batch_size, settings.num_workers, device)
    return Gallery(name, split, images, ids, loading)


def _batches_of_share(count: int, batch_size: int) -> list[slice]:
    """This process's share of `count` rows in batches; at least one, possibly empty."""
    rows = range(count)[share(count)]
    starts = range(rows.start, rows.stop, batch_size) or [rows.start]
    return [slice(start, min(start + batch_size, rows.stop)) for start in starts]
