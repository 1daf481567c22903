"""A whole epoch of a tiny CLIP with images read from disk: CCD, training, evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks import plain
from benchmarks.measure import interleaved, seconds_of
from benchmarks.plain import PlainModel
from benchmarks.plain_data import PlainBatches, evaluation_image
from benchmarks.setting import Rows, Setting, compare
from benchmarks.synthetic import (
    TINY,
    image_size,
    optimizer_arguments,
    random_model,
    training_pairs,
    training_state,
    write_dataset,
)
from datasets.annotations import Split, read_splits
from datasets.gallery import Gallery, GalleryLoading
from datasets.image_cache import open_images
from datasets.loaders import LoadingSettings, TrainingPairs
from datasets.tokenizer import Tokenizer
from processor.epoch import train_epoch
from processor.evaluation import evaluate
from processor.scoring import score_pairs
from processor.settings import LoopSettings
from solver.correspondence.ccd import COARSE, divide
from solver.objectives.base import cosine_similarity

IMAGES, QUERIES, BATCH = 1200, 580, 64  # two captions per image
SIZE = image_size(TINY)


def tiny_epoch(setting: Setting) -> Rows:
    """CCD, training and evaluation with a filled image cache, as after the first epoch."""
    folder = setting.folder / "epoch"
    counts = {"train": setting.scaled(IMAGES), "test": setting.scaled(QUERIES) // 2}
    file = write_dataset(folder, counts, SIZE, captions_per_image=2, images_per_person=4)
    splits = read_splits(str(file), folder, ["train", "test"])
    settings = LoadingSettings(BATCH, setting.device, img_aug=True, txt_aug=True)
    built = seconds_of(lambda: training_pairs(splits["train"], folder, SIZE, settings), setting.device)
    pairs = training_pairs(splits["train"], folder, SIZE, settings)
    seconds: dict[str, dict[str, float]] = {"plain": {}, "ours": {}}
    for part, ways in zip(("CCD", "training", "evaluation"), _ways(setting, pairs, splits["test"]), strict=True):
        timed = interleaved(dict(zip(seconds, ways, strict=True)), setting.repeats, setting.device)
        for name, value in timed.items():
            seconds[name][part] = value
    for times in seconds.values():
        times["epoch (CCD and training)"] = times["CCD"] + times["training"]
    rows = [
        compare(part, {name: times[part] for name, times in seconds.items()}, len(pairs))
        for part in ("CCD", "training", "epoch (CCD and training)")
    ]
    queries = len(splits["test"].captions)
    rows.append(compare("evaluation", {name: times["evaluation"] for name, times in seconds.items()}, queries))
    return [*rows, {"what": f"decoding {counts['train']:,} images and tokenising, once, s", "value": built}]


def _ways(setting: Setting, pairs: TrainingPairs, test: Split) -> list[tuple[Callable, Callable]]:
    """(plain, ours) for each of CCD, training and evaluation."""
    device, tokenizer, label = setting.device, Tokenizer(), np.ones(len(pairs), np.float32)
    slow = PlainModel(random_model(TINY, device, setting.plain_precision))
    slow_optimizer = plain.build_optimizer(*optimizer_arguments(slow.model))
    state = training_state(random_model(TINY, device, setting.precision))
    scoring, training = pairs.scoring_batches(0), pairs.training_batches(0)
    images = open_images(test.images, SIZE, setting.folder)
    gallery = Gallery("test", test, images, tokenizer(test.captions), GalleryLoading(512, 0, device))

    def plain_evaluation() -> None:
        rows = torch.stack([evaluation_image(path, SIZE) for path in test.images]).to(device)
        ids = torch.from_numpy(tokenizer(test.captions)).long().to(device)
        query, pids = (torch.from_numpy(part).to(device) for part in (test.caption_pids, test.image_pids))
        twice = plain.encode_twice(slow, rows.split(512), ids.split(512))
        bge, tse = (cosine_similarity(text, image) for image, text in twice.values())
        for similarity in (bge, tse, (bge + tse) / 2):
            plain.rank(similarity, query, pids)

    return [
        (
            lambda: divide(plain.score_pairs(slow, PlainBatches(pairs, scoring, tokenizer), len(pairs)), COARSE, (1,)),
            lambda: divide(score_pairs(state.model, state.loss, scoring, len(pairs)), COARSE, (1,)),
        ),
        (
            lambda: plain.train_epoch(slow, slow_optimizer, PlainBatches(pairs, training, tokenizer), label),
            lambda: train_epoch(state, training, label, LoopSettings()),
        ),
        (plain_evaluation, lambda: evaluate(state.model, gallery)),
    ]
