"""Correctness checks: a float32 step against the CPU, every precision against float32, the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import optimizer_arguments, random_batch, random_model, training_state
from datasets.loaders import Batch
from model.encoder import DualEncoder
from model.precision import PRECISIONS
from processor.epoch import train_epoch
from processor.scoring import score_pairs
from processor.settings import LoopSettings
from processor.step import backward
from solver.optimizer import build_optimizer

PAIRS = 8
# Bounds on the relative difference of losses and embeddings from float32. An embedding's entries are sums over a dozen
# layers of numbers rounded to 8 (bfloat16) or 11 (float16) bits.
BOUNDS = {"fp32": 1e-4, "fp16_adam": 1e-4, "bf16": 3e-2, "fp16": 4e-3, "fp16_weights": 6e-3}


def compared(what: str, difference: float, bound: float) -> dict:
    """A row of a check; a NaN difference fails."""
    return {"what": what, "difference": difference, "bound": bound, "holds": "yes" if difference <= bound else "NO"}


def decisive_model(setting: Setting, device: torch.device, precision: str) -> DualEncoder:
    """A random model with sharp attention in its last layer, so that token selection doesn't depend on rounding.

    Drawn on the CPU, so that all devices get the same weights; scaling by 4 is exact in every precision.
    """
    model = random_model(setting.sizes, torch.device("cpu"), precision)
    clip: Any = model.backbone
    with torch.no_grad():
        for tower in (clip.visual.transformer, clip.transformer):
            query = tower.resblocks[-1].attn.in_proj.weight.chunk(3)[0]
            query.mul_(4)
    return model.to(device)


class Step:
    """Results of one training step: embeddings, losses, gradients, weight changes."""

    def __init__(self, model: DualEncoder, batch: Batch) -> None:
        self.precision = model.precision
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            image, text = model.train()(batch.images, batch.ids)
        self.embeddings = _flat([*image.values(), *text.values()])
        state = training_state(model, lr=1e-4)
        weight = torch.ones(len(batch.pids), device=batch.pids.device)
        self.losses = _flat([*backward(state, batch, weight, 1).values()])
        scale = state.scaler.get_scale()
        self.gradients = _flat([p.grad for p in model.parameters() if p.grad is not None]) / scale
        state.scaler.step(state.optimizer)
        state.scaler.update()
        changes = [new.detach().double() - old for new, old in zip(model.parameters(), before, strict=True)]
        self.displacement = _flat(changes)


def _flat(parts: list[Tensor]) -> Tensor:
    """Concatenate into one float64 vector on the CPU."""
    return torch.cat([part.detach().flatten().double().cpu() for part in parts])


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def one_step(setting: Setting) -> Rows:
    """A float32 step on the device against one on the CPU: forward, losses, backward, Adam."""
    cpu = torch.device("cpu")
    batch = random_batch(setting.sizes, PAIRS, cpu)
    expected = Step(decisive_model(setting, cpu, "fp32"), batch)
    actual = Step(decisive_model(setting, setting.device, "fp32"), to(batch, setting.device))
    parts = ("embeddings", "losses", "gradients", "displacement")
    return [
        compared(f"fp32, {part}", _relative_error(getattr(actual, part), getattr(expected, part)), BOUNDS["fp32"])
        for part in parts
    ]


def precisions(setting: Setting) -> Rows:
    """Embeddings and losses of each precision against float32, on the device. Gradients and weight changes are reported
    without a bound, as the published float16 optimizer changes the weights differently by design."""
    batch = random_batch(setting.sizes, PAIRS, setting.device)
    expected, rows = Step(decisive_model(setting, setting.device, "fp32"), batch), []
    for precision in PRECISIONS[1:]:
        actual = Step(decisive_model(setting, setting.device, precision), batch)
        rows += [
            compared(
                f"{precision}, {part}",
                _relative_error(getattr(actual, part), getattr(expected, part)),
                BOUNDS[precision],
            )
            for part in ("embeddings", "losses")
        ]
        rows.append(
            {
                "what": f"{precision}, gradients",
                "difference": _relative_error(actual.gradients, expected.gradients),
                "moved, of fp32": (actual.displacement.norm() / expected.displacement.norm()).item(),
            }
        )
    return rows


def compiled(setting: Setting) -> Rows:
    """A step with `--compile` or `--grad_checkpointing` against one without, in float32 and bf16."""
    batch, rows = random_batch(setting.sizes, PAIRS, setting.device), []
    ways: dict[str, Callable[[DualEncoder], None]] = {
        "--grad_checkpointing": lambda model: model.backbone.set_grad_checkpointing(True),
        "--compile": lambda model: model.backbone.compile_blocks(setting.compiler),
    }
    torch.compiler.reset()
    for precision in ("fp32", "bf16"):
        expected = Step(decisive_model(setting, setting.device, precision), batch)
        for name, change in ways.items():
            model = decisive_model(setting, setting.device, precision)
            change(model)
            actual = Step(model, batch)
            rows += [
                compared(
                    f"{name}, {precision}, {part}",
                    _relative_error(getattr(actual, part), getattr(expected, part)),
                    bound,
                )
                for part, bound in (("losses", BOUNDS[precision]), ("gradients", 10 * BOUNDS[precision]))
            ]
    return rows


def recorded(setting: Setting) -> Rows:
    """Losses and weights of three steps with two caption lengths, and scores, with and without `--cuda_graphs`. All are
    bit-identical except where kernels sum in nondeterministic order."""
    if setting.device.type != "cuda":
        return [{"what": f"--cuda_graphs: not on {setting.device}"}]
    long = random_batch(setting.sizes, PAIRS, setting.device)
    batches, weight = [long, replace(long, ids=F.pad(long.ids, (0, 8))), long], np.ones(PAIRS, np.float32)
    rows = []
    for precision in ("fp32", "bf16", "fp16", "fp16_weights"):
        results = []
        for graphs in (False, True):
            settings = LoopSettings(log_period=3, cuda_graphs=graphs)
            state = training_state(decisive_model(setting, setting.device, precision), lr=1e-4)
            scores = score_pairs(state.model, state.loss, batches, PAIRS, settings)
            loss = train_epoch(state, batches, weight, settings).loss
            parts = [*state.model.parameters(), *state.model.buffers()]
            results.append((loss, np.concatenate([*scores.values()]), _flat([part.detach() for part in parts])))
        (loss, scores, weights), (loss2, scores2, weights2) = results
        bound = BOUNDS["fp32"] if precision == "fp32" else 1e-3
        rows.append(compared(f"{precision}, scores", _relative_error(*map(torch.from_numpy, (scores2, scores))), bound))
        rows.append(compared(f"{precision}, loss of three steps", abs(loss2 / loss - 1), bound))
        rows.append(compared(f"{precision}, weights after three steps", _relative_error(weights2, weights), bound))
    return rows


def float16_adam(setting: Setting) -> Rows:
    """The published optimizer on float16 weights: PyTorch's foreach step (default on a GPU) against a loop over
    tensors. The share of weights that differ, in the last bit, after three steps."""
    weights = []
    for foreach in (False, None):
        model = decisive_model(setting, setting.device, "fp16_weights")
        parameters, new, settings = optimizer_arguments(model, 1e-4)
        optimizer = build_optimizer(parameters, new, settings)
        for group in optimizer.param_groups:
            group["foreach"] = foreach
        generator = torch.Generator(setting.device).manual_seed(0)
        for _ in range(3):
            for parameter in parameters.values():
                _draw_gradient(parameter, generator)
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in parameters.values() if p.dtype == torch.float16]))
    one_by_one, together = weights
    differing = (one_by_one != together).double().mean().item()
    return [compared("float16 weights that differ after three steps, share", differing, 1e-2)]


def _draw_gradient(parameter: Parameter, generator: torch.Generator) -> None:
    """Set a gradient with magnitudes log-uniform from 1e-5 to 10."""
    draw = torch.randn(parameter.shape, generator=generator, device=parameter.device)
    size = 10 ** (6 * torch.rand(parameter.shape, generator=generator, device=parameter.device) - 5)
    parameter.grad = (draw * size).to(parameter.dtype)


def to(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to another device; its pair indices stay."""
    return replace(batch, images=batch.images.to(device), ids=batch.ids.to(device), pids=batch.pids.to(device))
