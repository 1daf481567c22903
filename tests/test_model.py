"""The model against the published numbers, and its fast paths against slow, obvious ones."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import tse
from model.names import from_published, to_published
from model.rde import RDE
from model.weights import load_into, read_sizes
from solver.losses import LossSettings, cosine_similarity, per_pair_loss, reduce_loss
from tests import published

GRID = (12, 4)


def golden_model(tse_bn: str) -> RDE:
    sizes = replace(read_sizes(published.weights("clip")), grid=GRID)
    model = RDE(sizes, select_ratio=0.3, tse_bn=tse_bn)
    load_into(model, from_published(published.weights("rde")), "golden weights")
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return published.numbers("model")


def test_embeddings_equal_the_published_ones(golden):
    model = golden_model("frozen").eval()
    with torch.no_grad():
        image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    for name, value in {
        "image_bge": image.bge,
        "text_bge": text.bge,
        "image_tse": image.tse,
        "text_tse": text.tse,
    }.items():
        np.testing.assert_allclose(value.numpy(), golden[f"eval.{name}"], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("loss", ["TAL", "SDM"])
@pytest.mark.parametrize(("mode", "tse_bn"), [("eval", "frozen"), ("train", "batch")])
def test_losses_and_every_gradient_norm_equal_the_published_ones(golden, mode, tse_bn, loss, monkeypatch):
    # With fewer words than are chosen, padding enters the BatchNorm's statistics, and the published code leaves it to
    # topk which padding. That one arbitrary choice is taken from topk here; ours is the earliest padding.
    monkeypatch.setattr(tse, "select_tokens", lambda scores, count: scores.topk(count, dim=1).indices)
    model = golden_model(tse_bn).train()
    image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    pids, label = torch.from_numpy(golden["pids"]), torch.from_numpy(golden["label_hat"])
    losses = {}
    for part in ("bge", "tse"):
        s = cosine_similarity(getattr(image, part), getattr(text, part))
        losses[part] = reduce_loss(loss, per_pair_loss(loss, s, pids, LossSettings()), label)
    sum(losses.values()).backward()

    for part, value in losses.items():
        assert value.item() == pytest.approx(float(golden[f"{mode}.{loss}.{part}_loss"]), rel=1e-4)
    expected = json.loads(str(golden[f"{mode}.{loss}.gradient_norms"]))
    norms = {name: p.grad.norm().item() for name, p in to_published(dict(model.named_parameters())).items()}
    assert norms.keys() == expected.keys()
    for name, norm in expected.items():
        # A bias before a batch norm has a gradient of pure rounding: it is compared with the scale of its neighbours.
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-5), name
