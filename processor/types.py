"""What the processor needs of model and data, whoever provides them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np
from torch import Tensor


class PairBatch(Protocol):
    """B pairs on the device: (B, 3, H, W) images, (B, L) ids, (B,) pids, (B,) positions in the training split (CPU).

    Of a training batch, several processes hold the images and ids of a share each.
    """

    images: Tensor
    ids: Tensor
    pids: Tensor
    pairs: Tensor


class TrainingData(Protocol):
    """The training split: N pairs, which of them are truly clean, and which are usable; the others are in no batch."""

    truly_clean: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int: ...
    def scoring_batches(self, epoch: int) -> Collection[PairBatch]: ...
    def training_batches(self, epoch: int) -> Collection[PairBatch]: ...


class EvaluationData(Protocol):
    """An evaluation split: batches of images in order; batches of captions with their positions."""

    name: str
    image_pids: np.ndarray
    caption_pids: np.ndarray

    def image_batches(self) -> Iterator[Tensor]: ...
    def text_batches(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class DualEncoder(Protocol):
    """A torch module that gives each modality a BGE and a TSE, in this order, and its weights under published names."""

    def __call__(self, images: Tensor, ids: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]: ...
    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]: ...
    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]: ...
    def train(self, mode: bool = True) -> DualEncoder: ...
    def eval(self) -> DualEncoder: ...
    def named_parameters(self) -> Iterator[tuple[str, Tensor]]: ...
    def towers(self) -> dict[str, dict[str, int | str]]: ...
    def new_parameters(self) -> set[str]: ...
    def published_state(self) -> dict[str, Tensor]: ...
    def load_published(self, state: dict[str, Tensor], source: str) -> None: ...
