"""No operation mixes devices, tested without a GPU: all device code runs on fake tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from assembly import build_state
from benchmarks.encoders import SyntheticGallery
from benchmarks.synthetic import SMALLEST, image_size
from datasets.loaders import Batch, LoadingSettings, TrainingPairs
from datasets.masking import Masking
from model.accelerate import accelerate
from model.backbones.clip import Clip
from model.heads.tse import TokenSelectionEmbedding
from model.precision import PRECISIONS
from model.weights import with_heads
from options import resolve
from processor.epoch import train_epoch
from processor.evaluation import evaluate
from processor.scoring import score_pairs
from processor.settings import LoopSettings, RerankSettings
from processor.state import TrainState
from solver.settings import OBJECTIVES
from tests.fake_device import fake, works
from tools.loading import LoadedRun
from tools.search.encode import Encoder
from utils.settings import Options

PAIRS = 6
DEVICES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not works(name), reason=f"PyTorch is not built for {name}, not even for fakes")
    )
    for name in ("cuda", "mps")
]
IDS = np.tile(np.array([49406, 5, 6, 7, 49407], np.int64), (PAIRS, 1))


pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")


@pytest.fixture(params=DEVICES)
def device(request) -> Any:
    with fake(request.param) as device:
        yield device


def options_of(**given: Any) -> Options:
    return resolve({"img_size": image_size(SMALLEST), "stride_size": 8, "batch_size": PAIRS, **given})


def state_of(device: torch.device, **given: Any) -> TrainState:
    options, pairs = options_of(**given), SimpleNamespace(pids=np.arange(PAIRS), usable=np.ones(PAIRS, bool))
    model, data = accelerate(with_heads(Clip(SMALLEST), options.of)), SimpleNamespace(pairs=pairs)
    return build_state(options, model.to(device), data, device)  # type: ignore[arg-type]


def pairs_of(device: torch.device) -> TrainingPairs:
    """Pairs whose images are in memory."""
    images: Any = _Images()
    split: Any = SimpleNamespace(caption_images=np.arange(PAIRS), caption_pids=np.arange(PAIRS))
    masking = Masking(mask_share=0.8, unchanged_share=0.1, for_all_objectives=False)
    settings = LoadingSettings(PAIRS, device, img_aug=True, txt_aug=True, masking=masking)
    return TrainingPairs(split, images, IDS, np.arange(PAIRS), settings)


class _Images:
    shape, broken = (PAIRS, 3, *image_size(SMALLEST)), ()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), *self.shape[1:]), np.uint8)


def batch_of(device: torch.device) -> Batch:
    """A loaded and augmented training batch."""
    (batch,) = pairs_of(device).training_batches(0)
    return batch


def train_and_score(device: torch.device, **given: Any) -> None:
    """Take one step, and score a batch."""
    state, batch = state_of(device, **given), batch_of(device)
    settings = LoopSettings(grad_accum=given.get("grad_accum", 1))
    train_epoch(state, [batch], np.ones(PAIRS, np.float32), settings)
    score_pairs(state.model, state.loss, [batch], PAIRS, settings)
    parts = [*state.model.parameters(), *state.model.buffers(), *state.loss.parameters(), *state.loss.buffers()]
    assert {part.device.type for part in parts} == {device.type}


@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "fp32"])  # that of others
def test_training_in_every_precision(device, precision):
    train_and_score(device, precision=precision, loss_names="TAL+id")


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_training_with_every_loss(device, grad_accum):
    different = {OBJECTIVES[name]: name for name in OBJECTIVES}  # some have two names
    train_and_score(device, loss_names="+".join(different.values()), cmt_depth=1, grad_accum=grad_accum)


@pytest.mark.parametrize(
    "given", [{"tse_pool": "avg", "tse_bn": "batch"}, {"tse_pool": "topk10"}, {"tse_head": "none"}], ids=str
)
def test_training_with_other_tse(device, given):
    train_and_score(device, **given)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_training_with_other_optimizers(device, optimizer):
    train_and_score(device, optimizer=optimizer)


@pytest.mark.parametrize("image_to_text", [False, True])
def test_evaluation_and_re_ranking(device, image_to_text):
    batch = batch_of(device)
    gallery: Any = SyntheticGallery(batch, 2)
    metrics, _ = evaluate(
        state_of(device).model, gallery, image_to_text=image_to_text, rerank=RerankSettings(k1=2, k2=2)
    )
    assert [*metrics] == ["BGE", "TSE", "BGE+TSE", "BGE+TSE re-ranked"]


def test_search(device):
    run = LoadedRun(Path(), options_of(), Path(), state_of(device).model)
    encoder = Encoder(run)
    assert encoder.images(np.zeros((2, 3, *image_size(SMALLEST)), np.uint8)).shape == (2, sum(encoder.widths.values()))
    assert encoder.texts(["a man", "a woman with a bag"]).shape == (2, sum(encoder.widths.values()))


def test_a_planted_device_mismatch_is_detected(device, monkeypatch):
    pooled = TokenSelectionEmbedding.pooled
    monkeypatch.setattr(TokenSelectionEmbedding, "pooled", lambda head, tokens: pooled(head, tokens).cpu())
    with pytest.raises(RuntimeError, match="device"):
        train_and_score(device)
