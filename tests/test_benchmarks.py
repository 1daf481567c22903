"""The fast way against the plain one of `benchmarks`: values, gradients, batches, and a whole run."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

from benchmarks import plain
from benchmarks.plain import PlainModel
from benchmarks.plain_data import PlainBatches, evaluation_image
from datasets.annotations import read_splits
from datasets.images import open_images
from datasets.loaders import Gallery, LoadingSettings, TrainingPairs
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer
from model.rde import RDE
from model.weights import build_model
from processor.epoch import train_epoch
from processor.evaluation import encode
from processor.metrics import retrieval_metrics
from processor.scoring import score_pairs
from solver.ccd import COARSE, divide
from solver.losses import LossSettings, cosine_similarity, per_pair_loss
from solver.optimizer import OptimizerSettings, build_optimizer
from tests import datasets_on_disk, published
from tests.test_model import golden_model

CPU = torch.device("cpu")
SIZE = (96, 32)


def step(model: RDE, way: RDE | PlainModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The embeddings of the golden batch, and the gradients of its TAL."""
    golden = published.numbers("model")
    image, text = way(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    pids = torch.from_numpy(golden["pids"])
    sum(
        per_pair_loss("TAL", cosine_similarity(i, t), pids, LossSettings()).sum()
        for i, t in zip(image, text, strict=True)
    ).backward()
    return [*image, *text], [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(("maps", "padded", "loops"), list(product([False, True], repeat=3))[1:])
def test_every_part_of_the_fast_model_equals_the_plain_one(maps, padded, loops):
    fast, slow = golden_model().train(), golden_model().train()
    embeddings, gradients = step(fast, fast)
    expected, expected_gradients = step(slow, PlainModel(slow, maps=maps, padded=padded, loops=loops))
    for value, wanted in zip([*embeddings, *gradients], [*expected, *expected_gradients], strict=True):
        assert (value - wanted).norm() <= 1e-5 * wanted.norm() + 1e-6


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> TrainingPairs:
    root = tmp_path_factory.mktemp("data")
    datasets_on_disk.write(root, "RSTPReid", datasets_on_disk.entries("RSTPReid", persons=10))
    split = read_splits("RSTPReid", root, ["train"])["train"]
    images = open_images(split.images, SIZE, root / "cache")
    settings = LoadingSettings(8, CPU, img_aug=True, txt_aug=True)
    return TrainingPairs(
        split, images, Tokenizer()(split.captions), draw_permutation(len(split.captions), 0.4), settings
    )


def test_batches_equal_those_decoded_and_tokenised_anew(pairs):
    for batches in (pairs.training_batches(3), pairs.scoring_batches(0)):
        ours, plainly = list(batches), list(PlainBatches(pairs, batches, Tokenizer()))
        assert len(ours) == len(plainly) == 5
        for fast, slow in zip(ours, plainly, strict=True):
            assert torch.equal(fast.images, slow.images)
            assert torch.equal(fast.ids, slow.ids[:, : fast.ids.shape[1]])
            assert not slow.ids[:, fast.ids.shape[1] :].any()
            assert torch.equal(fast.pids, slow.pids)
            assert torch.equal(fast.pairs, slow.pairs)


def test_one_encoding_pass_equals_two(pairs):
    split = pairs.split
    ids = Tokenizer()(split.captions)
    gallery = Gallery("train", split, pairs.images, ids, batch_size=7, num_workers=0, device=CPU)
    model = golden_model()
    model.clip.token_embedding = torch.nn.Embedding(49408, model.clip.sizes.text_width)
    encoded = encode(model, gallery)
    images = torch.stack([evaluation_image(path, SIZE) for path in split.images]).split(7)
    twice = plain.encode_twice(PlainModel(model), images, torch.from_numpy(ids).long().split(7))
    for part, (image, text) in enumerate(twice):
        torch.testing.assert_close(encoded.image[part], torch.nn.functional.normalize(image), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoded.text[part], torch.nn.functional.normalize(text), rtol=1e-5, atol=1e-5)


def test_ranking_equals_the_plain_way():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(200, 150, generator=generator).round(decimals=2)  # ties
    query, gallery = torch.arange(200) % 50, torch.arange(150) % 50
    assert retrieval_metrics(similarity, query, gallery) == pytest.approx(plain.rank(similarity, query, gallery))


def tiny_model() -> RDE:
    torch.manual_seed(0)
    shape = {"image_size": SIZE, "stride": 8, "text_length": 77, "vocab_size": 49408, "select_ratio": 0.3}
    return build_model("tiny", **shape, tse_bn="frozen", tse_head="mlp", tse_pool="max", precision="fp32")


def train(pairs: TrainingPairs, *, fast: bool) -> tuple[torch.Tensor, list]:
    """Three epochs of CCD and training with everything on or off: the weights, and each epoch's labels and loss."""
    model, settings, told = tiny_model(), OptimizerSettings(lr=1e-4), []
    if fast:
        optimizer = build_optimizer(model, model.new_parameters(), settings)
    else:
        optimizer, plainly = plain.build_optimizer(model, settings), PlainModel(model)
    for epoch in range(3):
        scoring, training = pairs.scoring_batches(epoch), pairs.training_batches(epoch)
        if fast:
            losses = score_pairs(model, scoring, len(pairs), "TAL", LossSettings())
            label = divide(*losses, COARSE, (1, epoch)).label
            scaler = GradScaler("cpu", enabled=False)
            kept = {"trained": "BGE+TSE", "log_period": 100}
            result = train_epoch(model, optimizer, scaler, training, label, "TAL", LossSettings(), **kept)
            told.append((label, result.loss))
        else:
            losses = plain.score_pairs(plainly, PlainBatches(pairs, scoring, Tokenizer()), len(pairs))
            label = divide(*losses, COARSE, (1, epoch)).label
            batches = PlainBatches(pairs, training, Tokenizer())
            told.append((label, plain.train_epoch(plainly, optimizer, batches, label)))
    return torch.nn.utils.parameters_to_vector(model.parameters()), told


def test_a_run_with_everything_on_ends_where_one_with_everything_off_does(pairs):
    (end, told), (expected_end, expected) = train(pairs, fast=True), train(pairs, fast=False)
    for (label, loss), (expected_label, expected_loss) in zip(told, expected, strict=True):
        np.testing.assert_array_equal(label, expected_label)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert len({label.tobytes() for label, _ in told}) > 1, "CCD divides anew each epoch"
    start = torch.nn.utils.parameters_to_vector(tiny_model().parameters())
    assert (end - expected_end).norm() < 1e-4 * (expected_end - start).norm()
