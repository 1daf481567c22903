"""Encoding images and sentences as vectors of an index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from assembly import inputs
from datasets.augmentation import normalise
from datasets.loaders import trim
from model.encoder import DualEncoder
from processor.evaluation import similarity_names
from processor.types import Embeddings
from tools.loading import LoadedRun
from utils.errors import OptionError, UserError
from utils.settings import Options

_TEXTS_AT_A_TIME = 256


class Encoder:
    """A run's model for search.

    Attributes:
        size: (height, width) of input images.
        words: maximum number of tokens in a sentence.
        widths: widths of the embeddings that are concatenated to a vector, in order.
        similarities: names of each embedding's similarity, and of the fused one.
        fingerprint: see `fingerprint`.
    """

    def __init__(self, run: LoadedRun) -> None:
        self.run, self.model = run, run.model
        self.size, self.words = run.options.img_size, run.options.text_length - 2
        self.device = next(run.model.parameters()).device
        self.tokenizer = inputs(run.options, run.model).tokenizer
        self.fingerprint = fingerprint(run.model, run.options)
        self.widths = dict(run.model.widths)
        self.similarities = similarity_names(self.widths)

    @torch.no_grad()
    def images(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) uint8 → (B, D) float32 unit vectors: concatenated unit embeddings over √E."""
        return _vectors(self.embed_images(pixels))

    def embed_images(self, pixels: np.ndarray) -> Embeddings:
        """(B, 3, H, W) uint8 → embeddings."""
        return self.model.encode_image(normalise(torch.from_numpy(pixels).to(self.device)))

    def embed_texts(self, ids: np.ndarray) -> Embeddings:
        """(B, L) token ids → embeddings."""
        return self.model.encode_text(torch.from_numpy(ids).long().to(self.device))

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """B sentences → (B, D) float32 unit vectors, as `images`."""
        parts = []
        starts = range(0, len(captions), _TEXTS_AT_A_TIME)
        for start in tqdm(starts, "sentences", unit="batch", leave=False, disable=len(starts) < 2 or None):
            ids = self.tokenizer(captions[start : start + _TEXTS_AT_A_TIME], self.words + 2)
            parts.append(_vectors(self.embed_texts(trim(ids))))
        return np.concatenate(parts)

    def similarity(self, name: str | None) -> str:
        """Check the name of a similarity and return it; default: the fused one.

        Raises:
            OptionError: the model has no such similarity.
        """
        if name is not None and name not in self.similarities:
            raise OptionError(f"--similarity {name}: choose from {', '.join(self.similarities)}")
        return name or self.similarities[-1]

    def weigh(self, vectors: np.ndarray, similarity: str) -> np.ndarray:
        """Scale query vectors so that their inner products with indexed vectors are one of `similarities`."""
        if similarity == self.similarities[-1]:
            return vectors
        weighed, start = np.zeros_like(vectors), 0
        for name, width in self.widths.items():
            if name == similarity:
                weighed[:, start : start + width] = len(self.widths) * vectors[:, start : start + width]
            start += width
        return weighed


def _vectors(embeddings: Embeddings) -> np.ndarray:
    vectors = torch.cat([F.normalize(part, dim=1) for part in embeddings.values()], dim=1) / len(embeddings) ** 0.5
    if not torch.isfinite(vectors).all():
        raise UserError("the model's embeddings are NaN or infinite: its weights are corrupted or diverged")
    return vectors.cpu().numpy()


def fingerprint(model: DualEncoder, options: Options) -> str:
    """SHA-256 of a model's weights and of all settings that affect its embeddings."""
    names = ("img_size", "stride_size", "select_ratio", "tse_head", "tse_pool")
    settings = [(name, options[name]) for name in names]
    if list(model.widths) != ["BGE", "TSE"]:  # not part of the fingerprints of older indexes
        settings.append(("heads", list(model.widths)))
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(model.published_state().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
