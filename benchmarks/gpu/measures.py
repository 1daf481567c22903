"""Speed of training steps in every precision, also compiled or checkpointed, and of optimizer steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.encoders import ours, training_step
from benchmarks.gpu.checks import decisive_model
from benchmarks.measure import count_flop, interleaved, matrix_peak
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import optimizer_arguments, random_batch
from datasets.loaders import Batch
from model.encoder import DualEncoder
from model.precision import PRECISIONS
from solver.optimizer import build_optimizer

COMMON = ("bf16", "fp16_weights")  # precisions in common use on GPUs


def training_steps(setting: Setting) -> Rows:
    """Pairs per second, share of the matrix rate measured for the precision's dtype, and peak memory."""
    flags = ["--grad_checkpointing", "--cuda_graphs"] if setting.device.type == "cuda" else ["--grad_checkpointing"]
    ways: list[tuple[str, tuple[str, ...]]] = [(precision, ()) for precision in PRECISIONS]
    return _steps(setting, ways + [(precision, (flag,)) for precision in COMMON for flag in flags])


def compiled_steps(setting: Setting) -> Rows:
    """The same with `--compile`."""
    variants = [("--compile",)] + [("--compile", "--cuda_graphs")] * (setting.device.type == "cuda")
    return _steps(setting, [(precision, variant) for precision in COMMON for variant in variants])


def _steps(setting: Setting, ways: list[tuple[str, tuple[str, ...]]]) -> Rows:
    batch = random_batch(setting.sizes, setting.batch, setting.device)
    flop = count_flop(training_step(replace(setting, steps=1), batch, ours(replace(setting, precision="fp32"))))
    peaks = {dtype: matrix_peak(setting.device, dtype) for dtype in {_dtype(precision) for precision, _ in ways}}
    rows = []
    for precision, flags in ways:
        _reset_peak_memory(setting.device)
        seconds = _seconds(setting, batch, _changed(setting, ours(replace(setting, precision=precision)), flags), flags)
        row = {"training step": " ".join((precision, *flags)), "ms": 1e3 * seconds, "pairs/s": setting.batch / seconds}
        row["share of matrix rate"] = flop / seconds / peaks[_dtype(precision)]
        if setting.device.type == "cuda":
            row["peak memory, GB"] = torch.cuda.max_memory_allocated(setting.device) / 1e9
        rows.append(row)
    return rows


def _changed(setting: Setting, model: DualEncoder, flags: tuple[str, ...]) -> DualEncoder:
    model.backbone.set_grad_checkpointing("--grad_checkpointing" in flags)
    if "--compile" in flags:
        torch.compiler.reset()  # else the recompilation limit is reached
        model.backbone.compile_blocks(setting.compiler)
    return model


def _seconds(setting: Setting, batch: Batch, model: DualEncoder, flags: tuple[str, ...]) -> float:
    """Seconds per step, from the difference of two epoch lengths, so that fixed costs cancel."""
    lengths = {"short": max(1, setting.steps // 2), "long": 2 * setting.steps}
    optimizer = build_optimizer(*optimizer_arguments(model), model.rounded_parameters())
    ways = {
        name: training_step(
            replace(setting, steps=steps), batch, model, optimizer, cuda_graphs="--cuda_graphs" in flags
        )
        for name, steps in lengths.items()
    }
    seconds = interleaved(ways, setting.repeats, setting.device)
    return (seconds["long"] - seconds["short"]) / (lengths["long"] - lengths["short"])


def _dtype(precision: str) -> torch.dtype:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp16_weights": torch.float16}
    return half.get(precision, torch.float32)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def optimizers(setting: Setting) -> Rows:
    """Milliseconds per optimizer step by precision; for float16 weights also tensor by tensor."""
    ways = {}
    for precision, foreach in (("fp32", None), ("fp16_weights", None), ("fp16_weights", False), ("fp16_adam", None)):
        model = decisive_model(setting, setting.device, precision)
        parameters, new, settings = optimizer_arguments(model)
        optimizer = build_optimizer(parameters, new, settings, model.rounded_parameters())
        for group in optimizer.param_groups:
            if foreach is not None:
                group["foreach"] = foreach
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 1e-3)
        ways[precision + (", one by one" if foreach is False else "")] = optimizer.step
    seconds = interleaved(ways, setting.repeats, setting.device)
    return [{"optimizer step": name, "ms": 1e3 * value} for name, value in seconds.items()]
