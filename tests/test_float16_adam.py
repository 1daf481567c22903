"""Adam in float16: PyTorch's on float16 weights, and `Float16Adam`'s rounding for float32 ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from solver.float16_adam import Float16Adam
from tools import float16_picture

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-3}


def gradients(count: int, seed: int, steps: int = 20) -> list[Tensor]:
    """Gradients of `count` float16 parameters, with magnitudes from 1e-7 to 1e3, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (10 * torch.rand(steps, count, generator=generator) - 7)
    return list((torch.randn(steps, count, generator=generator) * scale).half())


def stepped(optimizer: torch.optim.Optimizer, parameter: Tensor, all_gradients: list[Tensor]) -> list[Tensor]:
    """The parameter after each step."""
    found = []
    for gradient in all_gradients:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


def half_weights(count: int = 5000) -> torch.nn.Parameter:
    return torch.nn.Parameter((0.05 * torch.randn(count, generator=torch.Generator().manual_seed(3))).half())


def test_foreach_adam_matches_the_single_tensor_loop(monkeypatch):
    """The foreach implementation used on a GPU, run on a CPU; it differs only in rounding 0.999 before decaying v."""
    groups = [half_weights(), half_weights()]
    plain, together = (
        torch.optim.Adam([{"params": [group], "weight_decay": 4e-5}], **ADAM, foreach=foreach)
        for group, foreach in zip(groups, (False, True), strict=True)
    )
    expected = stepped(plain, groups[0], gradients(5000, 0))
    first = stepped(together, groups[1], gradients(5000, 0)[:1])
    assert torch.equal(first[0], expected[0]), "unpatched, while v is 0"

    groups[1] = half_weights()
    together = torch.optim.Adam([{"params": [groups[1]], "weight_decay": 4e-5}], **ADAM, foreach=True)
    monkeypatch.setattr(torch, "_foreach_mul_", lambda tensors, factor: [tensor.mul_(factor) for tensor in tensors])
    found = stepped(together, groups[1], gradients(5000, 0))
    assert all(map(torch.equal, found, expected))
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(together.state[groups[1]][name], plain.state[groups[0]][name])


def test_float16_adam_equals_adam_on_float16_weights_bit_for_bit():
    half, own = half_weights(), torch.nn.Parameter(half_weights().detach().float())
    adam = torch.optim.Adam([{"params": [half], "weight_decay": 4e-5}], **ADAM, foreach=False)
    rounding = Float16Adam([{"params": [own], "weight_decay": 4e-5}], [own], **ADAM)
    for gradient in gradients(5000, 1):
        before = half.detach().clone()
        with torch.no_grad():
            own.copy_(before)
        stepped(adam, half, [gradient])
        stepped(rounding, own, [gradient])
        assert torch.equal(own.half(), half)
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(rounding.state[own][name], adam.state[half][name].float())
        still = (half == before) & (gradient != 0)
        assert (own != before)[still].float().mean() > 0.9, "the steps that float16 lost"


def test_unrounded_parameters_are_stepped_as_by_pytorchs_adam():
    own, plain = (torch.nn.Parameter(half_weights().detach().float()) for _ in range(2))
    found = stepped(Float16Adam([{"params": [own], "weight_decay": 4e-5}], [], **ADAM), own, gradients(5000, 2))
    adam = torch.optim.Adam([{"params": [plain], "weight_decay": 4e-5}], **ADAM, foreach=False)
    assert all(map(torch.equal, found, stepped(adam, plain, gradients(5000, 2))))


@pytest.mark.parametrize(("gradient", "rates"), [(5.4e-3, 5.4), (5.5e-3, 0.63)])
def test_steps_exceed_the_learning_rate_where_the_second_moment_vanishes(gradient, rates):
    """lr·m/eps below 5.46e-3, √(half of float16's smallest number / (1 − β₂)); a fused step is below lr."""
    moved = {}
    for kind in ("rounded", "plain", "fused"):
        weight = torch.nn.Parameter(torch.zeros(1))
        more = {"fused": True} if kind == "fused" else {}
        optimizer = Float16Adam([{"params": [weight]}], [weight], **ADAM)
        if kind != "rounded":
            weight = torch.nn.Parameter(torch.zeros(1).half())
            optimizer = torch.optim.Adam([weight], **ADAM, **more)
        moved[kind] = abs(stepped(optimizer, weight, [torch.tensor([gradient])])[0].item()) / ADAM["lr"]
    assert moved["rounded"] == pytest.approx(rates, rel=0.01)
    assert moved["plain"] == pytest.approx(moved["rounded"], rel=0.01)
    assert moved["fused"] == pytest.approx(gradient / (gradient + 1e-3), rel=0.01)


def test_adamws_eps_is_0_in_float16():
    """It divides by 0 where the second moment vanishes; `solver.settings.check_optimizer` refuses it."""
    weight = torch.nn.Parameter(torch.zeros(2).half())
    moved = stepped(torch.optim.AdamW([weight], eps=1e-8), weight, [torch.tensor([1e-3, 0.0])])
    assert not moved[0].isfinite().any()


def test_overflowing_gradients_freeze_float16_weights_but_not_ours():
    """From 8,094 on, (1 − β₂)g² overflows float16; Adam divides by the moment, which stays infinite."""
    half, own = torch.nn.Parameter(torch.zeros(2).half()), torch.nn.Parameter(torch.zeros(2))
    after = [torch.tensor([value, 1.0]) for value in (9e3, *[1.0] * 20)]
    frozen = stepped(torch.optim.Adam([half], **ADAM), half, after)
    moved = stepped(Float16Adam([{"params": [own]}], [own], **ADAM), own, [torch.tensor([1e9, -1e9]), *after])
    assert [weights[0].item() for weights in frozen] == [0] * 21
    assert frozen[-1][1] < -0.01
    assert all(weights.isfinite().all() for weights in moved)
    assert (moved[-1] != moved[-2]).all()


def test_the_documentations_picture_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(float16_picture, "DOCS", tmp_path)
    committed = Path(__file__).parents[1] / "docs/float16_adam.png"
    float16_picture.main([])
    with Image.open(tmp_path / "float16_adam.png") as drawn, Image.open(committed) as shown:
        assert drawn.size == shown.size
