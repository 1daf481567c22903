"""The published code's float16 steps, the optimizer that rounds like it without losing steps, and their study."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

import assembly
import test as evaluation_root
import train as training_root
from datasets.loaders import Batch
from model import accelerate
from model.names import without_wrapper
from model.precision import ARITHMETIC, half_parameters, resolve_precision
from options import resolve
from processor import step
from processor.state import TrainState
from solver.objectives.base import cosine_similarity
from solver.optimizer import build_optimizer
from solver.settings import OptimizerSettings
from tests import datasets_on_disk, published
from tests.objectives import loss_of, optimizer_arguments, pairwise, step_state
from tests.test_model import golden_model
from tests.test_training import HALF, arguments, records, train_killed_and_resumed
from tools import export
from tools.reproduce import __main__ as reproduce
from tools.reproduce import displacement, runs
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("small_figures")

HALF_JSON = json.loads((published.GOLDEN / "half.json").read_text())
LOSSES = tuple(HALF_JSON["runs"])


class Steps(NamedTuple):
    """Eight steps on the golden batch.

    Attributes:
        losses: (8, 2) on BGE and on TSE.
        similarities: (8, 2, B, B).
        slopes: (8, 2, B, B) derivatives of the losses by the similarities.
        moved: after one and after eight steps, by published name: norm of the change, number of changed elements, and
            number of elements.
        types: dtypes of all tensors by published name.
    """

    losses: np.ndarray
    similarities: np.ndarray
    slopes: np.ndarray
    moved: dict[int, dict[str, tuple[float, int, int]]]
    types: dict[str, str]


def golden_steps(loss_name: str, precision: str) -> Steps:
    golden = published.numbers("model")
    model = golden_model(precision=precision).eval()
    settings, rounded = OptimizerSettings(lr=HALF_JSON["lr"]), model.rounded_parameters()
    optimizer, objective = build_optimizer(*optimizer_arguments(model), settings, rounded), pairwise(loss_name)
    images, ids, pids, label = (
        torch.from_numpy(golden[name]) for name in ("images", "caption_ids", "pids", "label_hat")
    )
    start = {name: value.clone() for name, value in model.published_state().items()}
    losses, similarities, slopes, moved = [], [], [], {}
    for number in range(1, 9):
        optimizer.zero_grad()
        image, text = model(images, ids)
        both = [cosine_similarity(i, t) for i, t in zip(image.values(), text.values())]
        for s in both:
            s.retain_grad()
        parts = [objective.reduce(objective.per_pair(s, pids), label) for s in both]
        sum(parts).backward()
        optimizer.step()
        losses.append([part.item() for part in parts])
        similarities.append(torch.stack(both).detach().numpy())
        slopes.append(np.stack([s.grad.numpy() for s in both]))
        if number in (1, 8):
            moved[number] = {
                name: ((value.double() - start[name]).norm().item(), (value != start[name]).sum().item(), value.numel())
                for name, value in model.published_state().items()
            }
    types = {name: str(value.dtype) for name, value in model.published_state().items()}
    return Steps(np.array(losses), np.array(similarities), np.array(slopes), moved, types)


def shuffled_linear(seed: int) -> Callable[..., Tensor]:
    """A linear layer that sums in another order, forward and backward."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.flatten(0, -2)
        r, o, i = (torch.randperm(size, generator=generator) for size in (len(rows), *weight.shape))
        y = F.linear(rows[r][:, i], weight[o][:, i], None if bias is None else bias[o])
        return y[r.argsort()][:, o.argsort()].view(*x.shape[:-1], -1)

    return shuffled


@contextlib.contextmanager
def shuffled_sums(seed: int) -> Iterator[None]:
    projected, others = shuffled_linear(seed), shuffled_linear(seed)  # projections: attention's and the final ones

    def forward(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        shuffled = projected if layer.out_features == 3 * layer.in_features else others
        return shuffled(x, layer.weight, layer.bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate.FastLinear, "forward", forward)
        patch.setattr(accelerate, "linear", projected)
        yield


@pytest.fixture(scope="module", params=LOSSES)
def ours(request) -> tuple[str, Steps]:
    return request.param, golden_steps(request.param, "fp16_weights")


@pytest.mark.slow
def test_eight_losses_equal_the_published_ones_up_to_summation_order(ours):
    """The bound: to first order a loss changes by Σ |∂L/∂s|·|δs|, where δs is the change of a similarity if all sums of
    the steps so far are computed in another order; the maximum over three orders and the steps so far.
    """
    loss_name, own = ours
    apart = np.zeros_like(own.similarities)
    for seed in range(3):
        with shuffled_sums(seed):
            other = golden_steps(loss_name, "fp16_weights")
        difference = np.abs(other.similarities - own.similarities)
        assert (difference.max(axis=(2, 3)) > 0).all(), "another order rounds differently"
        apart = np.maximum(apart, difference)
    bound = np.maximum.accumulate((np.abs(own.slopes) * apart).sum(axis=(2, 3)))
    expected = np.array(HALF_JSON["runs"][loss_name]["losses"])
    assert (np.abs(own.losses - expected) <= bound).all(), np.abs(own.losses - expected) / bound
    fused = golden_steps(loss_name, "fp32").losses
    assert (np.abs(fused - expected)[1:] > bound[1:]).mean() > 0.5, "most losses of another optimizer exceed it"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["towers", "heads"])
@pytest.mark.parametrize("number", [1, 8])
def test_displacement_and_share_of_changed_weights_match_the_published_ones(ours, part, number):
    loss_name, own = ours
    expected = HALF_JSON["runs"][loss_name][f"moved_after_{number}"]
    names = [name for name in expected if name in own.types and ("emb_layer" in name) == (part == "heads")]
    assert len(names) > 10
    sizes = np.array([own.moved[number][name][2] for name in names])
    norms = [np.linalg.norm([moved[name][0] for name in names]) for moved in (own.moved[number], expected)]
    assert norms[0] == pytest.approx(norms[1], rel=0.03)
    changed = [own.moved[number][name][1] for name in names], [expected[name][1] for name in names] * sizes
    assert np.sum(changed[0]) / sizes.sum() == pytest.approx(np.sum(changed[1]) / sizes.sum(), abs=0.01)


@pytest.mark.slow
def test_all_tensors_have_the_published_types(ours):
    loss_name, own = ours
    expected = HALF_JSON["runs"][loss_name]["dtypes"]
    assert {name: expected[name] for name in own.types} == own.types
    unused = expected.keys() - own.types.keys()
    assert not without_wrapper({name: torch.zeros(1) for name in unused}), "unused weights"


def test_float16_adam_moves_float32_weights_as_far_and_loses_no_step():
    own = golden_steps("TAL", "fp16_adam")
    assert set(own.types.values()) == {"torch.float32", "torch.int64"}
    for number in (1, 8):
        expected = HALF_JSON["runs"]["TAL"][f"moved_after_{number}"]
        for heads in (False, True):
            names = [name for name in expected if name in own.types and ("emb_layer" in name) == heads]
            norms = [np.linalg.norm([moved[name][0] for name in names]) for moved in (own.moved[number], expected)]
            assert norms[0] == pytest.approx(norms[1], rel=0.03)
        name = "base_model.visual.transformer.resblocks.0.attn.in_proj_weight"
        _, changed, size = own.moved[number][name]
        assert changed > 0.95 * size, "float16 weights keep half of these where they are"
        assert expected[name][1] < 0.7


def test_only_float32_weights_use_the_fused_optimizer():
    for precision, fused in (("fp16_weights", None), ("fp32", True), ("bf16", True)):
        model = golden_model(precision=precision)
        for name in ("Adam", "AdamW"):
            optimizer = build_optimizer(*optimizer_arguments(model), OptimizerSettings(optimizer=name))
            assert {group["fused"] for group in optimizer.param_groups} == {fused}
            assert {group["foreach"] for group in optimizer.param_groups} == {None}, "together on a GPU"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16_weights", "fp16_adam"])
def test_a_run_is_resumed_tested_exported_and_measured(tmp_path, monkeypatch, precision):
    """A run that was killed in its second epoch and resumed, against one that wasn't."""
    root_dir = tmp_path / "data"
    datasets_on_disk.write(root_dir, "RSTPReid")
    build, starts = assembly.build, []

    def recorded(*given: object) -> torch.nn.Module:
        model = build(*given)
        names = model.published_names()
        starts.append({names[name]: value.detach().clone() for name, value in model.named_parameters()})
        return model

    monkeypatch.setattr(assembly, "build", recorded)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--precision", precision, *HALF, "2"]
    training_root.main(arguments(root_dir, whole, *more))
    train_killed_and_resumed(arguments(root_dir, cut, *more), cut, monkeypatch)
    run_dir, continued = (next((output_dir / "RSTPReid").iterdir()) for output_dir in (whole, cut))
    assert records(run_dir) == records(continued)
    weights, other = (torch.load(run / "last.pth", weights_only=True)["model"] for run in (run_dir, continued))
    torch.testing.assert_close(weights, other, rtol=0, atol=0)
    assert f"precision: {precision}, {ARITHMETIC[precision]}" in (run_dir / "train_log.txt").read_text()

    own = json.loads((run_dir / "test_metrics.json").read_text())["best.pth"]
    export.main([str(run_dir)])
    evaluation_root.main([str(run_dir / "export"), "--root_dir", str(root_dir), "--device", "cpu"])
    assert json.loads((run_dir / "export/test_metrics.json").read_text())["model.safetensors"] == own

    squares = {"towers": 0.0, "heads": 0.0}
    for name, start in starts[0].items():
        part = "towers" if name.startswith("base_model.") else "heads"
        squares[part] += (weights[name].double() - start.double()).square().sum().item()
    found = displacement.displacement(run_dir)
    assert found == {part: pytest.approx(square**0.5) for part, square in squares.items()}
    assert found["heads"] > found["towers"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16_weights", "fp16_adam"])
def test_grad_accum_keeps_the_gradients_in_fp16_weights_and_fp16_adam(precision):
    golden = published.numbers("model")
    images, ids, pids = (torch.from_numpy(golden[name]) for name in ("images", "caption_ids", "pids"))
    batch = Batch(images, ids, pids, torch.arange(len(pids)))
    label, found = torch.from_numpy(golden["label_hat"]), []
    for parts in (1, 4):
        model = golden_model(precision=precision).train()
        losses = step.backward(step_state(model, loss_of("TAL")), batch, label, parts)
        found.append((losses, torch.cat([p.grad.double().flatten() for p in model.parameters()])))
    (losses, whole), (losses_of_parts, of_parts) = found
    tolerance = 1e-3 if precision == "fp16_weights" else 1e-5
    torch.testing.assert_close(losses_of_parts, losses, rtol=tolerance, atol=0)
    assert (of_parts - whole).norm() < 4 * tolerance * whole.norm()


def test_published_precision_is_fp16_weights_on_cuda_and_fp32_elsewhere():
    assert resolve_precision("published", torch.device("cuda", 1)) == "fp16_weights"
    assert (
        resolve_precision("published", torch.device("cpu"))
        == resolve_precision("published", torch.device("mps"))
        == "fp32"
    )
    assert all(resolve_precision(name, torch.device("cuda")) == name for name in ARITHMETIC)
    configs = Path(training_root.__file__).parent / "configs"
    assert resolve({"config": str(configs / "main/CUHK-PEDES_0.yaml")}).precision == "published"
    assert resolve({"config": str(configs / "SynthPEDES.yaml")}).precision == "fp32"
    assert resolve({}).precision == "fp32"


@pytest.mark.slow
def test_configs_yaml_stores_what_published_precision_resolved_to(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    training_root.main(arguments(tmp_path, tmp_path / "logs", "--precision", "published", *HALF, "1"))
    (config,) = tmp_path.glob("logs/*/*/configs.yaml")
    assert yaml.safe_load(config.read_text())["precision"] == "fp32"
    (config.parent / "test_metrics.json").unlink()
    training_root.main(["--resume", str(config.parent)])
    evaluation_root.main([str(config.parent), "--precision", "published"])
    assert len(list(config.parent.glob("test_metrics*.json"))) == 1, "the run's own arithmetic"


@pytest.mark.parametrize(
    ("precision", "optimizer", "needed"),
    [("fp16_adam", "SGD", "Adam"), ("fp16_adam", "AdamW", "Adam"), ("fp16_weights", "AdamW", "Adam or SGD")],
)
def test_an_optimizer_that_the_precision_does_not_support_is_refused(precision, optimizer, needed):
    with pytest.raises(UserError, match=f"--precision {precision}: needs --optimizer {needed}, not {optimizer}"):
        resolve({"precision": precision, "optimizer": optimizer})


def test_published_precision_with_adamw_is_refused_early_on_a_gpu(monkeypatch):
    monkeypatch.setattr(assembly, "choose_device", torch.device)
    monkeypatch.setattr(assembly, "seed_everything", lambda _: pytest.fail("went on"))
    options = resolve({"precision": "published", "optimizer": "AdamW", "device": "cuda"})
    with pytest.raises(UserError, match="--precision fp16_weights: needs --optimizer Adam or SGD, not AdamW"):
        assembly.train(options, None)


def test_only_the_published_float16_parameters_are_rounded():
    model = golden_model(precision="fp16_adam")
    halves = golden_model(precision="fp16_weights")
    assert model.rounded_parameters() == {n for n, p in halves.named_parameters() if p.dtype == torch.float16}
    assert model.rounded_parameters() == set(half_parameters(model))
    assert not halves.rounded_parameters()


def test_linear_layers_are_not_convolutions_under_autocast(monkeypatch):
    """On a CPU a float16 convolution's gradient takes some hundred times as long."""
    monkeypatch.setattr(accelerate, "ONEDNN", True)
    monkeypatch.setattr(F, "conv2d", lambda *_, **__: pytest.fail("a convolution"))
    x, layer = torch.randn(300, 128), accelerate.FastLinear(128, 64)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert layer(x).dtype == dtype


@pytest.mark.slow
def test_float16_gradients_whose_norm_overflows_are_accepted(tmp_path, monkeypatch):
    """A thousand entries of 6e4: their norm overflows float16, but none of them does."""
    datasets_on_disk.write(tmp_path, "RSTPReid")
    from processor import epoch

    backward = epoch.backward

    def large(state: TrainState, *more: object) -> dict[str, Tensor]:
        losses = backward(state, *more)
        state.model.heads["TSE"]["image"].fc.bias.grad.fill_(6e4)
        return losses

    monkeypatch.setattr(epoch, "backward", large)
    more = ["--precision", "fp16_weights", *HALF, "1", "--lr", "1e-9"]
    training_root.main(arguments(tmp_path, tmp_path / "logs", *more))

    def spoilt(*given: object) -> dict[str, Tensor]:
        return {name: loss * math.nan for name, loss in large(*given).items()}

    monkeypatch.setattr(epoch, "backward", spoilt)
    with pytest.raises(UserError, match="the loss is NaN or infinite"):
        training_root.main(arguments(tmp_path, tmp_path / "logs", *more))


@pytest.mark.slow
def test_the_arithmetic_study_runs_on_a_tiny_data_set(tmp_path, monkeypatch):
    """Every precision on a tiny data set for one epoch, in this process."""

    def in_this_process(_: runs.Run, command: list[str]) -> None:
        training_root.main(command[1:])

    monkeypatch.setattr(runs.Run, "_execute", in_this_process)
    annotations = datasets_on_disk.write(tmp_path, "RSTPReid")
    command = ["--table", "arithmetic", "--dataset", "SynthPEDES", "--noise", "0.5", "--seeds", "1"]
    command += ["--root_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--"]
    reproduce.main([*command, "--dataset_name", str(annotations), *HALF, "1", "--batch_size", "8", "--device", "cpu"])
    (report,) = tmp_path.glob("out/*.json")
    rows = json.loads(report.read_text())["rows"]
    assert [row["arithmetic"] for row in rows] == [[name] for name in ARITHMETIC]
    for row in rows:
        assert {"best by validation", "last"} <= row["results"].keys()
        assert all(0 < row["displacement"][part]["mean"] < 100 for part in ("towers", "heads"))
    moved = {row["name"]: row["displacement"]["heads"]["mean"] for row in rows}
    assert moved["fp16_weights"] > 1.2 * moved["fp32"]
    assert moved["fp16_adam"] == pytest.approx(moved["fp16_weights"], rel=0.2)
    text = report.with_suffix(".md").read_text()
    assert [line for line in text.splitlines() if "| float16 Adam alone " in line and "| fp16_adam " in line]
    assert "towers moved by" in text
    assert f"fp16_adam: {ARITHMETIC['fp16_adam']}" in text


def test_reports_list_the_runs_precision_and_the_papers(tmp_path, monkeypatch):
    """The paper's precision in one column, a run's own in another."""
    for method in ("check_existing", "train"):
        monkeypatch.setattr(runs.Run, method, lambda _: None)
    folder = tmp_path / "out/ablation/sdm_0.5/seed1/CUHK-PEDES/20260101_000000_RDE_SDM"
    folder.mkdir(parents=True)
    (folder / "configs.yaml").write_text("precision: bf16\nnum_epoch: 1\n")
    metrics = dict.fromkeys(("R1", "R5", "R10", "mAP", "mINP"), 50.0)
    tested = {name: {"BGE+TSE": metrics} for name in ("best.pth", "last.pth")}
    (folder / "test_metrics.json").write_text(json.dumps(tested))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    reproduce.main(["--table", "2", "--row", "sdm", "--seeds", "1", "--output_dir", str(tmp_path / "out")])
    (report,) = tmp_path.glob("out/*.json")
    (row,) = json.loads(report.read_text())["rows"]
    assert (row["arithmetic"], row["papers_arithmetic"]) == (["bf16"], "fp16_weights")
    lines = report.with_suffix(".md").read_text().splitlines()
    assert [line for line in lines if "| bf16 " in line and "| last " in line]
    assert [line for line in lines if "| fp16_weights " in line and "| the paper's best " in line]
