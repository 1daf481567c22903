"""The fast implementation against the plain one of `benchmarks`: values, gradients, batches, and a whole run."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from assembly import build
from benchmarks import page, plain, whole_run
from benchmarks.__main__ import SECTIONS
from benchmarks.__main__ import main as benchmark
from benchmarks.measure import count_flop
from benchmarks.plain import PlainModel
from benchmarks.plain_data import PlainBatches, evaluation_image
from benchmarks.synthetic import SMALLEST, VIT_B_16, image_size, optimizer_arguments, random_model, training_state
from datasets.annotations import read_splits
from datasets.gallery import Gallery, GalleryLoading
from datasets.image_cache import open_images
from datasets.loaders import LoadingSettings, TrainingPairs
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer
from model import accelerate
from model.backbones.clip import Clip
from model.backbones.transformer import Tower
from model.encoder import DualEncoder
from options import resolve
from processor.epoch import train_epoch
from processor.evaluation import encode
from processor.metrics import retrieval_metrics
from processor.scoring import score_pairs
from processor.settings import LoopSettings
from solver.correspondence.ccd import COARSE, divide
from solver.objectives.base import EncodedBatch, NamedEmbeddings
from tests import datasets_on_disk, published, small_clip
from tests.float64 import TOLERANCE
from tests.test_model import golden_model
from utils.errors import UserError

CPU = torch.device("cpu")
SIZE = (96, 32)
WAITS = "synchronisations"  # the one number that may be 0


def step(model: DualEncoder, way: DualEncoder | PlainModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The embeddings of the golden batch, and the gradients of its TAL."""
    golden = published.numbers("model")
    image, text = way(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    pids = torch.from_numpy(golden["pids"])
    batch = EncodedBatch(NamedEmbeddings(image), NamedEmbeddings(text), pids, torch.ones(len(pids)))
    losses = training_state(model).loss.score(batch)
    sum(loss.sum() for loss in losses.values()).backward()
    return [*image.values(), *text.values()], [parameter.grad for parameter in model.parameters()]


PARTS = [part.name for part in fields(PlainModel) if part.name != "model"]


def only(*parts: str) -> dict[str, bool]:
    """A plain model's arguments: these parts the plain way, all others ours."""
    return {part: part in parts for part in PARTS}


@pytest.mark.numeric
@pytest.mark.parametrize("plain_parts", [*([part] for part in PARTS), PARTS], ids="-".join)
def test_every_optimisation_equals_the_plain_model(plain_parts):
    """In float32, the only dtype computed by oneDNN: a cosine's last place, 2⁻²⁴, is 4e-6 after division by τ."""
    fast, slow = golden_model().train(), golden_model().train()
    embeddings, gradients = step(fast, fast)
    expected, expected_gradients = step(slow, PlainModel(slow, **only(*plain_parts)))
    for value, wanted in zip([*embeddings, *gradients], [*expected, *expected_gradients], strict=True):
        assert (value - wanted).norm() <= 1e-5 * wanted.norm() + 1e-6


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> TrainingPairs:
    root = tmp_path_factory.mktemp("data")
    datasets_on_disk.write(root, "RSTPReid", datasets_on_disk.entries("RSTPReid"))
    split = read_splits("RSTPReid", root, ["train"])["train"]
    images = open_images(split.images, SIZE, root / "cache")
    settings = LoadingSettings(8, CPU, img_aug=True, txt_aug=True)
    return TrainingPairs(
        split, images, Tokenizer()(split.captions), draw_permutation(len(split.captions), 0.4), settings
    )


def test_batches_equal_those_decoded_and_tokenised_again(pairs):
    for batches in (pairs.training_batches(3), pairs.scoring_batches(0)):
        ours, plainly = list(batches), list(PlainBatches(pairs, batches, Tokenizer()))
        assert len(ours) == len(plainly) == 3
        for fast, slow in zip(ours, plainly, strict=True):
            assert torch.equal(fast.images, slow.images)
            assert torch.equal(fast.ids, slow.ids[:, : fast.ids.shape[1]])
            assert not slow.ids[:, fast.ids.shape[1] :].any()
            assert fast.ids.shape[1] == slow.ids.argmax(dim=1).max() + 1, "as long as the longest caption"
            assert torch.equal(fast.pids, slow.pids)
            assert torch.equal(fast.pairs, slow.pairs)


@pytest.mark.numeric
@pytest.mark.usefixtures("float64")
def test_one_encoding_pass_equals_two(pairs):
    split = pairs.split
    ids = Tokenizer()(split.captions)
    gallery = Gallery("train", split, pairs.images, ids, GalleryLoading(7, 0, CPU))
    model = golden_model()
    model.backbone.token_embedding = torch.nn.Embedding(49408, model.backbone.config.text.width)
    encoded = encode(model, gallery)
    images = torch.stack([evaluation_image(path, SIZE) for path in split.images]).split(5)  # in other batches, too
    twice = plain.encode_twice(PlainModel(model), images, torch.from_numpy(ids).long().split(9))
    for name, (image, text) in twice.items():
        torch.testing.assert_close(encoded.image[name], torch.nn.functional.normalize(image), **TOLERANCE)
        torch.testing.assert_close(encoded.text[name], torch.nn.functional.normalize(text), **TOLERANCE)


@pytest.mark.numeric
def test_ranking_equals_the_plain_way():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(200, 150, generator=generator).round(decimals=2)  # ties
    query, gallery = torch.arange(200) % 50, torch.arange(150) % 50
    assert retrieval_metrics(similarity, query, gallery) == pytest.approx(plain.rank(similarity, query, gallery))


def small_model() -> DualEncoder:
    torch.manual_seed(0)
    return build(resolve({"pretrain_choice": str(small_clip.FILE), "img_size": SIZE, "stride_size": 8}))


def train(pairs: TrainingPairs, *, fast: bool) -> tuple[torch.Tensor, list]:
    """Two epochs of CCD and training with all optimisations on or off: weights, and each epoch's division and loss."""
    model, found = small_model(), []
    state, plainly = training_state(model, lr=1e-4), PlainModel(model)
    optimizer = plain.build_optimizer(*optimizer_arguments(model, lr=1e-4))
    for epoch in range(2):
        scoring, training = pairs.scoring_batches(epoch), pairs.training_batches(epoch)
        if fast:
            losses = score_pairs(model, state.loss, scoring, len(pairs))
            weight = divide(losses, COARSE, (1, epoch)).weight
            loss = train_epoch(state, training, weight, LoopSettings()).loss
        else:
            losses = plain.score_pairs(plainly, PlainBatches(pairs, scoring, Tokenizer()), len(pairs))
            weight = divide(losses, COARSE, (1, epoch)).weight
            loss = plain.train_epoch(plainly, optimizer, PlainBatches(pairs, training, Tokenizer()), weight)
        found.append((*losses.values(), weight, loss))
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach(), found


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.usefixtures("float64")
def test_two_epochs_with_all_optimisations_equal_two_without(pairs):
    (end, found), (expected_end, expected) = train(pairs, fast=True), train(pairs, fast=False)
    for epoch, expected_epoch in zip(found, expected, strict=True):
        for value, wanted in zip(epoch, expected_epoch, strict=True):
            np.testing.assert_allclose(value, wanted, **TOLERANCE)
    assert len({weight.tobytes() for _, _, weight, _ in found}) > 1, "CCD divides again each epoch"
    start = torch.nn.utils.parameters_to_vector(small_model().parameters())
    assert (end - expected_end).norm() < TOLERANCE["rtol"] * (expected_end - start).norm()


def test_counted_flop_equal_the_analytic_count():
    with torch.device("meta"):  # shapes alone
        clip = Clip(VIT_B_16)
    images = torch.empty(2, 3, *image_size(VIT_B_16), device="meta")
    ids = torch.zeros(2, 77, dtype=torch.long, device="meta")
    # 34.5 and 6.0 GFLOP per pair: 12 layers, per token 24·width² for the four products and 4·L·width for attention.
    assert count_flop(lambda: clip.encode_image(images)) == pytest.approx(2 * 34.5e9, rel=0.01)
    assert count_flop(lambda: clip.encode_text(ids)) == pytest.approx(2 * 6.0e9, rel=0.01)


def test_flop_of_the_plain_model_and_of_each_optimisation_are_as_derived():
    image, text = Tower(128, 2, 2, "quick_gelu"), replace(VIT_B_16.text, layers=2)
    sizes = replace(VIT_B_16, image=image, text=text, vocab_size=100)
    model = random_model(sizes, CPU).eval()
    images, ids = torch.zeros(1, 3, *image_size(sizes)), torch.tensor([[98, *[5] * 28, 99]])

    def flop(*parts: str, tse: bool = True) -> np.ndarray:
        way = PlainModel(model, **only(*parts))
        encoded = (lambda: way.encode_image(images, tse=tse)), (lambda: way.encode_text(ids, tse=tse))
        return np.array([count_flop(way) for way in encoded])

    def tower(length: int, width: int) -> float:
        return 2 * (24 * length * width**2 + 4 * length**2 * width) + 2 * length * width * 512

    patches = 2 * 192 * 768 * 128
    np.testing.assert_allclose(flop(*PARTS, tse=False), (tower(193, 128) + patches, tower(77, 512)), rtol=1e-3)
    ours = flop()
    encoded = (lambda: model.encode_image(images)), (lambda: model.encode_text(ids))
    np.testing.assert_array_equal(ours, [count_flop(way) for way in encoded])
    for part in ("gelu", "loops", "mkl"):
        np.testing.assert_array_equal(flop(part), ours)
    row_of_attention = 2 * np.array([193 * 128, 30 * 512])
    np.testing.assert_array_equal(ours - flop("maps"), row_of_attention)
    np.testing.assert_array_equal(flop("whole") - ours, (16 * 128**2 * (193 - 58), 16 * 512**2 * (30 - 23)))
    np.testing.assert_array_equal(flop("padded") > 2 * ours, (False, True))


@pytest.mark.parametrize("mkl", [True, False])
def test_linear_layers_use_onednn_unless_mkl_is_requested(mkl, monkeypatch):
    monkeypatch.setattr(accelerate, "ONEDNN", True)
    model, images = golden_model(), torch.from_numpy(published.numbers("model")["images"]).repeat(8, 1, 1, 1)
    with FlopCounterMode(display=False) as counter:
        PlainModel(model, **only(*({"maps", "mkl"} if mkl else {"maps"}))).encode_image(images)
    products = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    assert ("aten.addmm" in products) == mkl
    assert accelerate.ONEDNN


@pytest.mark.slow
def test_the_command_fills_its_file_section_by_section(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.epoch.TINY", SMALLEST)
    file = tmp_path / "benchmarks.json"
    quick = ["--quick", "--device", "cpu", "--batch_size", "2", "--repeats", "1", "--out", str(file)]
    benchmark([*quick, "start", "ranking"])
    benchmark([*quick, *(name for name in SECTIONS if name != "start")])
    results = json.loads(file.read_text())
    assert results.keys() == SECTIONS.keys()
    for section in results.values():
        assert section["about"]["machine"]
        for row in section["rows"]:
            assert all(value > 0 for key, value in row.items() if not isinstance(value, str) and key != WAITS), row
    kept = {row["way"]: row["kept a pair, MB"] for row in results["memory"]["rows"]}
    assert kept["--grad_checkpointing, fp32"] < kept["ours, fp32"] < kept["plain, fp32"]
    printed = capsys.readouterr().out
    assert all(title in printed for title, _ in SECTIONS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "no section speed: choose from start, ranking"),
        (["start", "--precision", "int8"], "choose from fp32, bf16, fp16"),
        (["start", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["start", "--out", "/nowhere/x.json"], "--out /nowhere/x.json: no folder /nowhere"),
        (["start", "--out", "tests"], "--out tests: the existing file contains no benchmark results"),
        (["start", "--out", "README.md"], "--out README.md: the existing file contains no benchmark results"),
    ],
)
def test_user_errors_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        benchmark(arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("whole_run_here")
def test_a_whole_run_is_measured_and_projected(tmp_path):
    file = tmp_path / "benchmarks.json"
    own = ["--folder", str(tmp_path), "--share", "0.001", "--tiny", "--epochs", "1", "--out", str(file)]
    more = ["--num_workers", "0", "--batch_size", "16", "--device", "cpu", "--output_dir", str(tmp_path / "else")]
    whole_run.main([*own, "--", *more])
    rows = {row["what"]: row for row in json.loads(file.read_text())["whole_run"]["rows"]}
    assert rows["training"]["seconds"] > 0
    assert rows["training pairs/s"]["value"] > 0
    assert "60 epochs, projected" in rows


@pytest.mark.slow
def test_concurrent_page_users_get_their_own_results(capsys):
    page.main(["--quick"])
    printed = capsys.readouterr().out
    assert "20 different correct answers to 20 sentences; 0 wrong" in printed
    counts = {row[0]: int(row[1]) for line in printed.splitlines() if (row := cells(line)) and row[1].isdigit()}
    assert counts == {"search": 16, "click": 16, "search, all at once": 4}


def cells(line: str) -> list[str]:
    """The cells of a table row."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_results_for_another_user_are_detected():
    class Other:
        async def search(self, _: str) -> list[str]:
            return ["1.jpg", "0.jpg"]

        async def click(self, position: int) -> str:
            return f" a man  {position}.jpg BGE 0.1"

    judge = object.__new__(page.Judge)
    judge.expected, judge.seconds, judge.wrong = {"a man": ["0.jpg", "1.jpg"], "a woman": ["1.jpg", "0.jpg"]}, {}, 0

    async def ask() -> list[int]:
        asked = [judge.search(Other(), "a woman"), judge.search(Other(), "a man")]
        asked += [
            judge.click(Other(), "a man", 1),
            judge.click(Other(), "a woman", 1),
            judge.click(Other(), "a woman", 0),
        ]
        return [await one or judge.wrong for one in asked]

    assert asyncio.run(ask()) == [0, 1, 1, 2, 3]
    assert {what: len(seconds) for what, seconds in judge.seconds.items()} == {"search": 2, "click": 3}


@pytest.mark.parametrize(
    ("flag", "message"), [("--people", "must be at least 1"), ("--pictures", "must be at least 12")]
)
def test_zero_people_or_pictures_are_refused(flag, message):
    with pytest.raises(UserError, match=f"{flag} 0: {message}"):
        page.main([flag, "0"])
