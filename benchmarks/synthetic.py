"""Synthetic models and data: random weights, images of smooth noise, random captions as long as those of CUHK-PEDES."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.optim import Optimizer

from datasets.annotations import Split
from datasets.image_cache import open_images
from datasets.loaders import Batch, LoadingSettings, TrainingPairs
from datasets.tokenizer import EOS, SOS, Tokenizer
from model.accelerate import accelerate
from model.backbones.clip import Clip
from model.backbones.clip_config import ClipConfig
from model.backbones.transformer import Tower
from model.encoder import DualEncoder
from model.weights import with_heads
from processor.state import TrainState
from processor.types import Encoder
from solver.correspondence.base import Facts
from solver.correspondence.fixed import All
from solver.objectives.training import TrainingLoss
from solver.objectives.triplet import TAL
from solver.optimizer import build_optimizer
from solver.settings import OptimizerSettings, TripletSettings
from utils.settings import Options

VIT_B_16 = ClipConfig(
    image=Tower(width=768, layers=12, heads=12, activation="quick_gelu"),
    text=Tower(width=512, layers=12, heads=8, activation="quick_gelu"),
    patch=16,
    stride=16,
    grid=(24, 8),
    text_length=77,
    vocab_size=49408,
    shared_width=512,
)
TINY = ClipConfig(
    image=Tower(width=128, layers=4, heads=2, activation="quick_gelu"),
    text=Tower(width=128, layers=4, heads=2, activation="quick_gelu"),
    patch=8,
    stride=8,
    grid=(12, 4),
    text_length=77,
    vocab_size=49408,
    shared_width=512,
)
SMALLEST = replace(
    TINY, image=replace(TINY.image, layers=1), text=Tower(64, layers=1, heads=1, activation="quick_gelu")
)
_WORDS = "a the man woman wears carries red blue black white shirt jacket trousers shoes bag with and is in her his"
WORDS = _WORDS.split()


def image_size(sizes: ClipConfig) -> tuple[int, int]:
    """Height and width in pixels."""
    return sizes.grid[0] * sizes.patch, sizes.grid[1] * sizes.patch


def random_model(sizes: ClipConfig, device: torch.device, precision: str = "fp32") -> DualEncoder:
    """RDE's model with random weights from a fixed seed; the towers' count as pretrained."""
    torch.manual_seed(0)
    with device:
        model = _fresh(sizes, "fp32")
        if precision == "fp32":
            return model
        converted = _fresh(sizes, precision)
    converted.load_state_dict(model.state_dict())
    return converted


def _fresh(sizes: ClipConfig, precision: str) -> DualEncoder:
    backbone = Clip(sizes)
    backbone.pretrained = frozenset(name for name, _ in backbone.named_parameters())
    return accelerate(with_heads(backbone, Options(precision=precision).of))


def optimizer_arguments(
    model: DualEncoder, lr: float = 1e-5
) -> tuple[dict[str, Parameter], dict[str, float], OptimizerSettings]:
    """Arguments for `build_optimizer`: all parameters, the learning rates of the new ones, and the settings."""
    settings = OptimizerSettings(lr=lr)
    return dict(model.named_parameters()), dict.fromkeys(model.new_parameters(), settings.head_lr), settings


def training_state(
    model: DualEncoder, encoder: Encoder | None = None, optimizer: Optimizer | None = None, lr: float = 1e-5
) -> TrainState:
    """A training state with TAL on both embeddings.

    Args:
        encoder: wrapper to train instead of the model itself.
        optimizer: default: a new one.
    """
    loss = TrainingLoss({"TAL": TAL(TripletSettings())}, list(model.widths))
    scaler = GradScaler(next(model.parameters()).device.type, enabled=model.precision == "fp16")
    optimizer = optimizer or build_optimizer(*optimizer_arguments(model, lr), model.rounded_parameters())
    return TrainState(encoder or model, loss, optimizer, scaler, All(None, Facts("all", 1, 0.0, "made up")))


def caption_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) caption lengths in words: 23.5 on average, as in CUHK-PEDES, and at least 12."""
    return np.clip(12 + rng.gamma(2.3, 5, count), 12, 75).astype(int)


def random_batch(sizes: ClipConfig, pairs: int, device: torch.device) -> Batch:
    """A batch of noise images and random captions, padded to the longest, each pair with its own identity."""
    rng = np.random.default_rng(0)
    lengths = caption_lengths(pairs, rng)
    ids = np.zeros((pairs, lengths.max() + 2), np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[: length + 2] = [SOS, *rng.integers(1, 49405, length), EOS]
    images = torch.randn(pairs, 3, *image_size(sizes), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(pairs)
    return Batch(images.to(device), torch.from_numpy(ids).to(device), numbers.to(device), numbers)


def jpeg(rng: np.random.Generator, size: Sequence[int]) -> bytes:
    """A smooth random (height, width) image, about as expensive to decode as a photograph."""
    coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_dataset(
    folder: Path, images: dict[str, int], size: Sequence[int], *, captions_per_image: int, images_per_person: int
) -> Path:
    """Write images into `imgs/`, `images` of them per split, and their annotation file; returns the file."""
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng, size) for _ in range(256)]  # written repeatedly, as decoding costs the same
    entries, number, person = [], 0, 0
    for split, count in images.items():
        for position in range(count):
            person += position % images_per_person == 0
            path = folder / "imgs" / f"{number // 1000:03d}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[number % len(pictures)])
            texts = [" ".join(rng.choice(WORDS, n)) for n in caption_lengths(captions_per_image, rng)]
            name = str(path.relative_to(folder / "imgs"))
            entries.append({"id": person, "file_path": name, "captions": texts, "split": split})
            number += 1
    file = folder / "synthetic.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def training_pairs(split: Split, folder: Path, size: tuple[int, int], settings: LoadingSettings) -> TrainingPairs:
    """The split's pairs, all of them clean, with images cached in `folder`."""
    ids = Tokenizer()(split.captions)
    return TrainingPairs(split, open_images(split.images, size, folder), ids, np.arange(len(ids)), settings)
