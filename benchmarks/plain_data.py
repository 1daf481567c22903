"""The plain loader: each access decodes and resizes an image, augments it with torchvision, and tokenises a caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from datasets.augmentation import MEAN, STD, augment_text, draw_image
from datasets.loaders import Batch, Batches, TrainingPairs
from datasets.tokenizer import Tokenizer

TF: Any = functional  # annotated for tensors only


class PlainPairs(Dataset[Any]):
    """One pair per item, in the order and with the random draws of one of our passes, for equal batches.

    Args:
        batches: the pass to reproduce.
    """

    def __init__(self, pairs: TrainingPairs, batches: Batches, tokenizer: Tokenizer) -> None:
        self.pairs, self.tokenizer = pairs, tokenizer
        self.dataset: Any = batches._loader.dataset

    def __len__(self) -> int:
        return len(self.dataset.order)

    def __getitem__(self, number: int) -> tuple[Tensor, np.ndarray, int, int]:
        pairs, dataset, settings = self.pairs, self.dataset, self.pairs.settings
        pair = int(dataset.order[number])
        size = pairs.images.shape[2:]
        rng = np.random.default_rng((settings.seed, dataset.epoch, dataset.purpose, pair))
        draw = draw_image(rng, size, settings.img_aug)
        image = augment(open_image(pairs.split.images[pairs.image_of_pair[pair]], size), draw)
        ids = self.tokenizer([pairs.split.captions[pairs.permutation[pair]]])[0]
        if settings.txt_aug:
            ids = augment_text(ids, rng)
        return image, ids, int(pairs.pids[pair]), pair


class PlainBatches:
    """`datasets.loaders.Batches` over plain pairs."""

    def __init__(self, pairs: TrainingPairs, batches: Batches, tokenizer: Tokenizer) -> None:
        self.device, settings = pairs.settings.device, pairs.settings
        dataset = PlainPairs(pairs, batches, tokenizer)
        self.loader = DataLoader(dataset, settings.batch_size, num_workers=settings.num_workers)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for images, ids, pids, numbers in self.loader:
            yield Batch(images.to(self.device), ids.to(self.device).long(), pids.to(self.device), numbers)


def open_image(path: Path, size: Sequence[int]) -> Image.Image:
    """Decode and resize to (height, width)."""
    with Image.open(path) as image:
        return TF.resize(image.convert("RGB"), list(size))


def augment(image: Image.Image, draw: np.ndarray) -> Tensor:
    """Flip, pad, crop, normalise and erase as drawn by `datasets.augmentation.draw_image`: (3, H, W)."""
    flip, top, left, e_top, e_left, e_height, e_width = draw.tolist()
    size = (image.height, image.width)
    image = TF.hflip(image) if flip else image
    image = TF.crop(TF.pad(image, 10), top, left, *size)
    pixels = TF.normalize(TF.to_tensor(image), MEAN, STD)
    if e_height:
        pixels = TF.erase(pixels, e_top, e_left, e_height, e_width, torch.tensor(MEAN).view(3, 1, 1))
    return pixels


def evaluation_image(path: Path, size: Sequence[int]) -> Tensor:
    """Decode, resize, normalise: (3, H, W)."""
    return TF.normalize(TF.to_tensor(open_image(path, size)), MEAN, STD)
