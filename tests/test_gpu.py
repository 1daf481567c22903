"""What only a GPU can show; skipped without one."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import checks
from benchmarks.setting import Setting
from benchmarks.synthetic import TINY, VIT_B_16, random_model
from model.encoder import DualEncoder
from solver.objectives.base import EncodedBatch, NamedEmbeddings
from solver.optimizer import build_optimizer
from solver.settings import OptimizerSettings
from tests import published
from tests.objectives import loss_of, optimizer_arguments
from tests.test_model import golden_model
from utils.devices import choose_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = choose_device("auto")  # as programs choose it: float32 convolutions are not to use TF32
PAIRS = 64


def steps(model: DualEncoder, batch: tuple[torch.Tensor, ...], lr: float, count: int) -> list[list[float]]:
    """The losses on BGE and on TSE of each of `count` steps of TAL on (images, ids, pids, l̂)."""
    images, ids, pids, label = (part.to(DEVICE) for part in batch)
    model = model.to(DEVICE).train()
    optimizer = build_optimizer(*optimizer_arguments(model), OptimizerSettings(lr=lr), model.rounded_parameters())
    losses, objective = [], loss_of("TAL")
    for _ in range(count):
        optimizer.zero_grad()
        parts = [*objective(EncodedBatch(*map(NamedEmbeddings, model(images, ids)), pids, label)).values()]
        sum(parts).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append([part.item() for part in parts])
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return losses


def golden_batch() -> tuple[torch.Tensor, ...]:
    golden = published.numbers("model")
    return tuple(torch.from_numpy(golden[name]) for name in ("images", "caption_ids", "pids", "label_hat"))


def test_precisions_match_float32_and_then_the_published_losses():
    """The first loss is float32's within a half precision's rounding; the second shows which optimizer it was."""
    names = ("fp32", "bf16", "fp16_weights", "fp16_adam")
    found = {name: steps(golden_model(precision=name), golden_batch(), 1e-4, 2) for name in names}
    for name in names[1:]:
        assert found[name][0] == pytest.approx(found["fp32"][0], rel=2e-2 if name == "bf16" else 2e-3)
    expected = published_losses()
    for name in ("fp16_weights", "fp16_adam"):
        assert found[name][1] == pytest.approx(expected[1], rel=1e-2)
    assert found["fp32"][1][1] > 1.2 * expected[1][1]


def published_losses() -> list[list[float]]:
    return json.loads((published.GOLDEN / "half.json").read_text())["runs"]["TAL"]["losses"]


def test_foreach_adam_matches_the_single_tensor_loop():
    """PyTorch's choice on a GPU rounds as the plain loop does, but for the last place of some divisions."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    start = [(0.05 * torch.randn(4096, generator=generator, device=DEVICE)).half() for _ in range(3)]
    found = []
    for foreach in (False, None):
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-3, weight_decay=4e-5, foreach=foreach)
        generator.manual_seed(1)
        for _ in range(20):
            for parameter in parameters:
                scale = 10 ** (6 * torch.rand(4096, generator=generator, device=DEVICE) - 5)
                parameter.grad = (torch.randn(4096, generator=generator, device=DEVICE) * scale).half()
            optimizer.step()
        moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
        found.append((torch.cat([p.detach() for p in parameters]), torch.cat(moments)))
    (one_by_one, moments), (together, moments_together) = found
    assert torch.equal(moments, moments_together) or (moments != moments_together).float().mean() < 1e-3
    assert (one_by_one != together).float().mean() < 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16_weights", "fp16_adam"])
def test_a_step_of_the_published_size_does_not_overflow(precision):
    """ViT-B/16 at 384×128, 64 pairs, fresh weights of CLIP's own scale."""
    torch.manual_seed(0)
    model = random_model(VIT_B_16, torch.device("cpu"), precision)
    ids = torch.zeros(PAIRS, 77, dtype=torch.long)
    ids[:, 0], ids[:, 1:30], ids[:, 30] = 49406, torch.randint(1, 49000, (PAIRS, 29)), 49407
    batch = (torch.randn(PAIRS, 3, 384, 128), ids, torch.arange(PAIRS), torch.ones(PAIRS))
    losses = steps(model, batch, 1e-5, 2)
    assert all(0 < loss < 1e3 for pair in losses for loss in pair)


@pytest.mark.parametrize(
    "check", [checks.one_step, checks.precisions, checks.float16_adam, checks.recorded, checks.compiled]
)
def test_the_gpu_benchmarks_checks_pass(check, tmp_path):
    """Float32 steps equal the CPU's; precisions are within their bounds; CUDA graphs and compiling change nothing."""
    setting = Setting(DEVICE, precision="bf16", sizes=TINY, batch=8, scale=1, repeats=1, steps=1, folder=tmp_path)
    rows = check(setting)
    assert rows
    assert [row for row in rows if row.get("holds") == "NO"] == []
