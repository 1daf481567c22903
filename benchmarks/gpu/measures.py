"""How fast: a training step of every precision, with and without compiling and checkpointing; optimizers; waits."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.encoders import ours, training_step
from benchmarks.gpu.checks import decisive_model
from benchmarks.made_up import learning, random_batch
from benchmarks.measure import count_flop, interleaved, matrix_peak
from benchmarks.setting import Rows, Setting
from model.encoder import DualEncoder
from model.precision import PRECISIONS
from solver.optimizer import build_optimizer


def training_steps(setting: Setting) -> Rows:
    """Pairs a second, share of the measured matrix rate of the type that is multiplied in, and peak memory."""
    rows, batch = [], random_batch(setting.sizes, setting.batch, setting.device)
    model = ours(replace(setting, precision="fp32"))
    flop = count_flop(training_step(replace(setting, steps=1), batch, model))
    del model
    peaks = {name: matrix_peak(setting.device, _dtype(name)) for name in PRECISIONS}
    for precision in PRECISIONS:
        for variant in ("", "--grad_checkpointing"):
            rows.append(_timed(setting, precision, variant, flop, peaks[precision]))
    return rows


def compiled_steps(setting: Setting) -> Rows:
    """The same with `--compile`, in the precisions that GPUs are used with; and how long compiling took."""
    batch = random_batch(setting.sizes, setting.batch, setting.device)
    flop = count_flop(training_step(replace(setting, steps=1), batch, ours(replace(setting, precision="fp32"))))
    return [
        _timed(setting, precision, "--compile", flop, matrix_peak(setting.device, _dtype(precision)))
        for precision in ("bf16", "fp16_weights")
    ]


def _dtype(precision: str) -> torch.dtype:
    return (
        torch.float16
        if precision in ("fp16", "fp16_weights")
        else torch.bfloat16
        if precision == "bf16"
        else torch.float32
    )


def _timed(setting: Setting, precision: str, variant: str, flop: int, peak: float) -> dict:
    device, batch = setting.device, random_batch(setting.sizes, setting.batch, setting.device)
    model = ours(replace(setting, precision=precision))
    _change(model, variant)
    way = training_step(setting, batch, model)
    _forget_peak(device)
    seconds = interleaved({"way": way}, setting.repeats, device)["way"] / setting.steps
    row = {"training step": f"{precision} {variant}".strip(), "ms": 1e3 * seconds, "pairs/s": setting.batch / seconds}
    row["share of matrix rate"] = flop / seconds / peak
    if device.type == "cuda":
        row["peak memory, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


def _change(model: DualEncoder, variant: str) -> None:
    model.backbone.set_grad_checkpointing(variant == "--grad_checkpointing")
    if variant == "--compile":
        model.backbone.compile_blocks()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def optimizers(setting: Setting) -> Rows:
    """Milliseconds of an optimizer step alone, by precision; with float16 weights also tensor by tensor."""
    ways = {}
    for precision, foreach in (("fp32", None), ("fp16_weights", None), ("fp16_weights", False), ("fp16_adam", None)):
        model = decisive_model(setting, setting.device, precision)
        parameters, new, settings = learning(model)
        optimizer = build_optimizer(parameters, new, settings, model.rounded_parameters())
        for group in optimizer.param_groups:
            if foreach is not None:
                group["foreach"] = foreach
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 1e-3)
        ways[precision + (", one by one" if foreach is False else "")] = optimizer.step
    seconds = interleaved(ways, setting.repeats, setting.device)
    return [{"optimizer step": name, "ms": 1e3 * value} for name, value in seconds.items()]
