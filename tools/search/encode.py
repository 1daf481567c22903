"""Images and sentences to the vectors of an index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from datasets.augmentation import normalise
from datasets.loaders import trim
from datasets.tokenizer import Tokenizer
from model.rde import Embeddings
from processor.evaluation import SIMILARITIES
from tools.loading import LoadedRun
from utils.errors import UserError

_TEXTS_AT_A_TIME = 256


class Encoder:
    """A run's model for search.

    Attributes:
        size: (height, width) of the images it takes.
        words: how many tokens of a sentence it reads.
        bge_width, width: of an image's vector the BGE's part, which comes first, and all of it.
        fingerprint: tells models apart: SHA-256 of the weights and of what else decides about embeddings.
    """

    def __init__(self, run: LoadedRun) -> None:
        self.run, self.model = run, run.model
        self.size, self.words = run.options.img_size, run.options.text_length - 2
        self.device = next(run.model.parameters()).device
        self.tokenizer = Tokenizer()
        self.fingerprint = _fingerprint(run)
        self.bge_width = run.model.clip.config.shared_width
        self.width = self.texts(["a person"]).shape[1]

    @torch.no_grad()
    def images(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) uint8 → (B, D) float32 unit vectors [bge, tse]/√2."""
        return _vectors(self.model.encode_image(normalise(torch.from_numpy(pixels).to(self.device))))

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """(B, D) float32 unit vectors [bge, tse]/√2 of sentences."""
        parts = []
        starts = range(0, len(captions), _TEXTS_AT_A_TIME)
        for start in tqdm(starts, "sentences", unit="batch", leave=False, disable=len(starts) < 2 or None):
            ids = self.tokenizer(captions[start : start + _TEXTS_AT_A_TIME], self.words + 2)
            parts.append(_vectors(self.model.encode_text(torch.from_numpy(trim(ids)).long().to(self.device))))
        return np.concatenate(parts)

    def weigh(self, vectors: np.ndarray, similarity: str) -> np.ndarray:
        """Vectors whose inner products with an index's are a similarity of `SIMILARITIES`, a cosine each."""
        if similarity == SIMILARITIES[2]:
            return vectors
        weighed = np.zeros_like(vectors)
        part = slice(None, self.bge_width) if similarity == SIMILARITIES[0] else slice(self.bge_width, None)
        weighed[:, part] = 2 * vectors[:, part]
        return weighed


def _vectors(embeddings: Embeddings) -> np.ndarray:
    vectors = torch.cat([F.normalize(part, dim=1) for part in embeddings], dim=1) / 2**0.5
    if not torch.isfinite(vectors).all():
        raise UserError("the model gives embeddings that are not finite numbers: its weights are damaged or diverged")
    return vectors.cpu().numpy()


def _fingerprint(run: LoadedRun) -> str:
    names = ("img_size", "stride_size", "select_ratio", "tse_head", "tse_pool")
    digest = hashlib.sha256(repr([(name, run.options[name]) for name in names]).encode())
    for name, value in sorted(run.model.published_state().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
