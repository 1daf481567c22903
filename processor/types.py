"""What the processor needs of model and data, whoever provides them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

Embeddings = dict[str, Tensor]  # by name, (B, D), not normalised


class PairBatch(Protocol):
    """B pairs on the device: (B, 3, H, W) images, (B, L) ids, (B,) pids, (B,) positions in the training split (CPU).

    Of a training batch, several processes hold the images and ids of a share each.
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor: ...
    @property
    def pids(self) -> Tensor: ...
    @property
    def pairs(self) -> Tensor: ...


class PairBatches(Protocol):
    """The batches of an epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[PairBatch]: ...


class TrainingData(Protocol):
    """The training split: N pairs, which of them are truly clean, and which are usable; the others are in no batch."""

    truly_clean: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int: ...
    def scoring_batches(self, epoch: int) -> PairBatches: ...
    def training_batches(self, epoch: int) -> PairBatches: ...


class Captioned(Protocol):
    """Captions, image paths and identities of an evaluation split, for pictures and files."""

    @property
    def captions(self) -> list[str]: ...
    @property
    def images(self) -> list[Path]: ...
    @property
    def image_pids(self) -> np.ndarray: ...
    @property
    def caption_images(self) -> np.ndarray: ...
    @property
    def person_ids(self) -> np.ndarray: ...


class EvaluationData(Protocol):
    """An evaluation split: batches of images in order; batches of captions with their positions."""

    name: str
    image_pids: np.ndarray
    caption_pids: np.ndarray

    @property
    def split(self) -> Captioned: ...
    def image_batches(self) -> Iterator[Tensor]: ...
    def text_batches(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Encoder(Protocol):
    """A torch module that gives each modality its named embeddings, and its weights under published names."""

    @property
    def widths(self) -> Mapping[str, int]: ...
    def __call__(self, images: Tensor, ids: Tensor) -> tuple[Embeddings, Embeddings]: ...
    def encode_image(self, images: Tensor) -> Embeddings: ...
    def encode_text(self, ids: Tensor) -> Embeddings: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def towers(self) -> dict[str, dict[str, Any]]: ...
    def published_state(self) -> dict[str, Tensor]: ...
    def load_published(self, state: dict[str, Tensor], source: str) -> None: ...
