"""Protocols for the model and data that the processor works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Embeddings = dict[str, Tensor]  # by name, (B, D), not normalised


class PairBatch(Protocol):
    """B pairs on the device: (B, 3, H, W) images, (B, L) ids, (B,) pids, (B,) positions in the training split (CPU).

    With masking also (B, L) labels, the original ids of masked words and 0 elsewhere; and masked, the masked ids,
    unless `ids` are masked. In training each process holds only its share of images and ids.
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor: ...
    @property
    def pids(self) -> Tensor: ...
    @property
    def pairs(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor | None: ...
    @property
    def masked(self) -> Tensor | None: ...


class PairBatches(Protocol):
    """The batches of an epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[PairBatch]: ...


class TrainingData(Protocol):
    """The training split: N pairs, which of them are truly clean and which usable; unusable ones are in no batch."""

    truly_clean: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int: ...
    def scoring_batches(self, epoch: int) -> PairBatches: ...
    def training_batches(self, epoch: int) -> PairBatches: ...


class Captioned(Protocol):
    """Captions, image paths and identities of an evaluation split, for figures and files."""

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


class Encodable(Protocol):
    """Images and captions to rank: batches of images in order; batches of captions with their positions; pids."""

    image_pids: np.ndarray
    caption_pids: np.ndarray

    def image_batches(self) -> Iterator[Tensor]: ...
    def text_batches(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class EvaluationData(Encodable, Protocol):
    """An evaluation split."""

    name: str

    @property
    def split(self) -> Captioned: ...


class Embedder(Protocol):
    """Computes named embeddings of both modalities."""

    def encode_image(self, images: Tensor) -> Embeddings: ...
    def encode_text(self, ids: Tensor) -> Embeddings: ...
    def eval(self) -> Any: ...


class Encoder(Embedder, Protocol):
    """A torch module that returns named embeddings of both modalities, and its weights under published names."""

    @property
    def widths(self) -> Mapping[str, int]: ...
    def __call__(self, images: Tensor, ids: Tensor) -> tuple[Embeddings, Embeddings]: ...
    def autocast(self, device: torch.device) -> torch.autocast: ...
    def with_tokens(
        self, images: Tensor, ids: Tensor, masked: Tensor | None = None
    ) -> tuple[Embeddings, Embeddings, tuple[Tensor, Tensor]]: ...
    def train(self, mode: bool = True) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def towers(self) -> dict[str, dict[str, Any]]: ...
    def published_state(self) -> dict[str, Tensor]: ...
    def load_published(self, state: dict[str, Tensor], source: str) -> None: ...
