"""Data loading on one core against the plain baseline, by number of pairs and by stage."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from benchmarks.measure import interleaved
from benchmarks.plain_data import PlainBatches, augment, open_image
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import image_size, training_pairs, write_dataset
from datasets.annotations import read_splits
from datasets.augmentation import apply_image, draw_image
from datasets.images import read_image
from datasets.loaders import LoadingSettings, TrainingPairs
from datasets.tokenizer import Tokenizer

JPEG_SIZE = (256, 96)  # roughly the median of CUHK-PEDES
PAIRS, BATCH = 256, 64


def loading(setting: Setting) -> Rows:
    """Milliseconds per pair; ours without and with the device's part, the augmentation."""
    pairs = [_pairs(setting, factor * setting.scaled(PAIRS)) for factor in (1, 2, 4)]
    return [_compare_with_plain(setting, part) for part in pairs] + _parts(setting, pairs[0])


def _pairs(setting: Setting, count: int) -> TrainingPairs:
    folder = setting.folder / f"loading_{count}"
    images = {"train": count // 2, "test": 2}
    file = write_dataset(folder, images, JPEG_SIZE, captions_per_image=2, images_per_person=3)
    split = read_splits(str(file), folder, ["train"])["train"]
    settings = LoadingSettings(BATCH, torch.device("cpu"), img_aug=True, txt_aug=True)
    return training_pairs(split, folder, image_size(setting.sizes), settings)


def _compare_with_plain(setting: Setting, pairs: TrainingPairs) -> dict:
    tokenizer = Tokenizer()
    batches = pairs.training_batches(0)
    ways = {
        "plain": lambda: deque(PlainBatches(pairs, batches, tokenizer), maxlen=0),
        "ours": lambda: deque(batches._loader, maxlen=0),
        "with the device's part": lambda: deque(batches, maxlen=0),
    }
    seconds = interleaved(ways, setting.repeats, torch.device("cpu"))
    each = {name: 1000 * value / len(pairs) for name, value in seconds.items()}
    return {
        "what": f"{len(pairs):,} pairs",
        "plain, ms": each["plain"],
        "ours, ms": each["ours"],
        "ratio": each["plain"] / each["ours"],
        "ours with the device's part, ms": each["with the device's part"],
        "its ratio": each["plain"] / each["with the device's part"],
    }


def _parts(setting: Setting, pairs: TrainingPairs) -> Rows:
    """Milliseconds per pair of each stage, plain and ours."""
    size, count = image_size(setting.sizes), min(BATCH, len(pairs))
    chosen = np.random.default_rng(0).permutation(len(pairs))[:count]
    images, tokenizer = pairs.image_of_pair[chosen], Tokenizer()
    paths = [pairs.split.images[image] for image in images]
    captions = [pairs.split.captions[pair] for pair in chosen]
    draws = np.stack([draw_image(np.random.default_rng(pair), size, True) for pair in chosen])
    opened, cached = [open_image(path, size) for path in paths], torch.from_numpy(pairs.images[images])
    parts = {
        "decode and resize / read the cache": (
            lambda: [read_image(path, size) for path in paths],
            lambda: pairs.images[images],
        ),
        "tokenise / look up": (lambda: [tokenizer([caption]) for caption in captions], lambda: pairs.ids[chosen]),
        "augment one by one / in a batch": (
            lambda: torch.stack([augment(image, draw) for image, draw in zip(opened, draws, strict=True)]),
            lambda: apply_image(cached, torch.from_numpy(draws)),
        ),
    }
    rows = []
    for what, (plainly, ours) in parts.items():
        seconds = interleaved({"plain": plainly, "ours": ours}, 2 * setting.repeats, torch.device("cpu"))
        each = {name: 1000 * value / count for name, value in seconds.items()}
        row = {"what": what, "plain, ms": each["plain"], "ours, ms": each["ours"]}
        rows.append(row | {"ratio": each["plain"] / each["ours"]})
    return rows
