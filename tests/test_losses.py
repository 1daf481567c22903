"""Losses against the published numbers, slow oracles in float64, and the paper's lemmas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.objectives.base import cosine_similarity
from solver.objectives.triplet import positive_similarity
from tests import published
from tests.objectives import pairwise

pytestmark = pytest.mark.numeric

TRIPLET = ["TAL", "TRL", "TRL-S"]
LOSSES = [*TRIPLET, "InfoNCE", "SDM"]


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("loss", ["TAL", "TRL", "InfoNCE", "SDM"])
@pytest.mark.parametrize(("tau", "margin"), [(0.015, 0.1), (0.05, 0.2)])
def test_losses_and_gradients_equal_the_published_ones(case, loss, tau, margin):
    golden = published.case("losses", case)
    image = torch.from_numpy(golden["image_features"]).requires_grad_()
    text = torch.from_numpy(golden["text_features"]).requires_grad_()
    pids = torch.from_numpy(golden["pids"])
    per_pair = pairwise(loss, tau=tau, margin=margin).per_pair(cosine_similarity(image, text), pids)
    per_pair.sum().backward()
    key = f"{loss}.tau{tau}.margin{margin}"
    np.testing.assert_allclose(per_pair.detach(), golden[key], rtol=1e-5, atol=1e-6)
    for gradient, name in ((image.grad, "grad_image"), (text.grad, "grad_text")):
        # For a solved pair, softmax terms of size 1/temperature cancel up to rounding: hence the absolute bound.
        np.testing.assert_allclose(gradient, golden[f"{key}.{name}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", range(4))
def test_positive_similarity_equals_the_published_one(case):
    golden = published.case("losses", case)
    s = cosine_similarity(torch.from_numpy(golden["image_features"]), torch.from_numpy(golden["text_features"]))
    pids = torch.from_numpy(golden["pids"])
    found = positive_similarity(s, pids[:, None] == pids[None, :], 0.015)
    np.testing.assert_allclose(found, golden["positive_similarity"], rtol=1e-6, atol=1e-6)


def slow_loss(name: str, s: np.ndarray, pids: np.ndarray, tau: float, m: float, temperature: float) -> list[float]:
    """Directly from the formulas, one pair and direction at a time."""
    losses = []
    for i in range(len(pids)):
        total = 0.0
        for row in (s[i], s[:, i]):
            positives = [j for j in range(len(pids)) if pids[j] == pids[i]]
            negatives = [j for j in range(len(pids)) if pids[j] != pids[i]]
            weights = [math.exp(row[j] / tau) for j in positives]
            s_plus = sum(w * row[j] for w, j in zip(weights, positives, strict=True)) / sum(weights)
            softmax = [math.exp(x / temperature) / sum(math.exp(y / temperature) for y in row) for x in row]
            if name == "TAL" and negatives:
                total += max(0.0, m - s_plus + tau * math.log(sum(math.exp(row[j] / tau) for j in negatives)))
            elif name == "TRL" and negatives:
                total += max(0.0, m - s_plus + max(row[j] for j in negatives))
            elif name == "TRL-S":
                total += sum(max(0.0, m - s_plus + row[j]) for j in negatives)
            elif name == "InfoNCE":
                total -= 0.5 * math.log(softmax[i])
            elif name == "SDM":
                target = [1 / len(positives) if j in positives else 0.0 for j in range(len(pids))]
                total += sum(p * (math.log(p) - math.log(t + 1e-8)) for p, t in zip(softmax, target, strict=True))
        losses.append(total)
    return losses


@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), ids=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_losses_equal_the_oracle(seed, size, ids):
    rng = np.random.default_rng(seed)
    s, pids = rng.uniform(-1, 1, (size, size)), rng.integers(0, ids, size)
    for name in LOSSES:
        fast = pairwise(name, tau=0.03, margin=0.2).per_pair(torch.from_numpy(s), torch.from_numpy(pids))
        np.testing.assert_allclose(fast, slow_loss(name, s, pids, 0.03, 0.2, 0.02), rtol=1e-6, atol=1e-6, err_msg=name)


@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), tau=st.floats(0.002, 0.2), margin=st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_lemma_1_trl_is_never_above_tal(seed, size, tau, margin):
    rng = np.random.default_rng(seed)
    s, pids = torch.from_numpy(rng.uniform(-1, 1, (size, size))), torch.from_numpy(rng.integers(0, size, size))
    bound = {"tau": tau, "margin": margin}
    assert (pairwise("TRL", **bound).per_pair(s, pids) <= pairwise("TAL", **bound).per_pair(s, pids) + 1e-9).all()


def test_tal_tends_to_trl_as_tau_falls():
    generator = torch.Generator().manual_seed(0)
    s = torch.rand(16, 16, generator=generator, dtype=torch.float64) * 2 - 1
    pids = torch.arange(16) % 7
    gaps = []
    for tau in (0.1, 0.03, 0.01, 0.001):
        bound = {"tau": tau}
        tal, trl = (pairwise(name, **bound).per_pair(s, pids) for name in ("TAL", "TRL"))
        gaps.append((tal - trl).max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert gaps[-1] < 1e-3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", [0.002, 0.015])
def test_gradients_are_finite_and_do_not_vanish_at_small_tau(loss, tau):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(16, 32, generator=generator).requires_grad_()
    text = torch.randn(16, 32, generator=generator)
    pairwise(loss, tau=tau).per_pair(cosine_similarity(image, text), torch.arange(16)).sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.norm() > 0.1


@pytest.mark.parametrize("loss", TRIPLET)
@pytest.mark.parametrize("pids", [[4, 4, 4], [7]])
def test_without_negatives_loss_and_gradient_are_zero(loss, pids):
    s = torch.linspace(-1, 1, len(pids) ** 2).view(len(pids), -1).requires_grad_()
    per_pair = pairwise(loss).per_pair(s, torch.tensor(pids))
    per_pair.sum().backward()
    assert (per_pair == 0).all()
    assert (s.grad == 0).all()


def test_a_row_without_negatives_keeps_all_losses_finite():
    s = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    for loss in LOSSES:
        assert pairwise(loss).per_pair(s, torch.tensor([1, 1, 1, 2])).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_reduction_sums_or_averages_the_labelled_pairs(loss):
    per_pair, label = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 1.0])
    assert pairwise(loss).reduce(per_pair, label) == (2.5 if loss in ("InfoNCE", "SDM") else 5.0)
    assert pairwise(loss).reduce(per_pair, torch.zeros(3)) == 0
