"""Training step, CCD pass and evaluation encoding: against the plain baseline, ablated, and by batch size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks import plain
from benchmarks.measure import Way, count_flop, interleaved, matrix_peak
from benchmarks.plain import PlainModel
from benchmarks.setting import Rows, Setting, compare
from benchmarks.synthetic import optimizer_arguments, random_batch, random_model, training_state
from datasets.loaders import Batch
from model.encoder import DualEncoder
from processor.epoch import train_epoch
from processor.evaluation import Encoded, encode
from processor.scoring import score_pairs
from processor.settings import LoopSettings
from processor.types import Encoder
from solver.optimizer import build_optimizer


class SyntheticGallery:
    """A batch, repeated, as an evaluation split, which sorts captions by length."""

    def __init__(self, batch: Batch, batches: int) -> None:
        self.batch, self.batches = batch, batches
        self.image_pids = self.caption_pids = np.zeros(len(batch.ids) * batches, np.int64)

    def image_batches(self) -> Iterator[Tensor]:
        """The images."""
        yield from [self.batch.images] * self.batches

    def text_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions and token ids of all captions, the shorter half first."""
        ids = self.batch.ids.repeat(self.batches, 1)
        for rows in ids.argmax(dim=1).argsort().split(len(self.batch.ids)):
            yield rows.cpu(), ids[rows, : int(ids[rows].argmax(dim=1).max()) + 1]


def training_step(
    setting: Setting,
    batch: Batch,
    model: DualEncoder | PlainModel,
    optimizer: Optimizer | None = None,
    log_period: int | None = None,
    cuda_graphs: bool = False,
) -> Way:
    """A function that trains on `setting.steps` batches, with a new optimizer or a shared one.

    It waits for the device every `log_period` steps, by default once.
    """
    trained = model.model if isinstance(model, PlainModel) else model
    state = training_state(trained, as_encoder(model), optimizer)
    weight, batches = np.ones(len(batch.pids), np.float32), [batch] * setting.steps
    settings = LoopSettings(log_period=log_period or setting.steps, cuda_graphs=cuda_graphs)
    return lambda: train_epoch(state, batches, weight, settings)


def as_encoder(model: DualEncoder | PlainModel) -> Encoder:
    """Type a plain model as an `Encoder`: it has the methods that passes over pairs call, but no others."""
    return cast("Encoder", model)


def plain_training_step(setting: Setting, batch: Batch, model: PlainModel) -> Way:
    """As `training_step`, for the plain baseline."""
    optimizer = plain.build_optimizer(*optimizer_arguments(model.model))
    label = np.ones(len(batch.pids), np.float32)
    return lambda: plain.train_epoch(model, optimizer, [batch] * setting.steps, label)


def plain_and_ours(setting: Setting) -> tuple[PlainModel, DualEncoder]:
    """The plain model, and ours in the setting's precision; with equal precisions they share weights."""
    fast = ours(setting)
    if setting.precision == setting.plain_precision:
        return PlainModel(fast), fast
    return PlainModel(random_model(setting.sizes, setting.device, setting.plain_precision)), fast


def ours(setting: Setting) -> DualEncoder:
    """Our model in the setting's precision."""
    return random_model(setting.sizes, setting.device, setting.precision)


def compare_with_plain(setting: Setting) -> Rows:
    """The three passes; shares are of the rate that large matrix products reach in our precision on this machine."""
    batch, steps = _batch(setting), setting.steps
    pairs, peak = setting.batch * steps, matrix_peak(setting.device, setting.dtype)
    slow, fast = plain_and_ours(setting)
    tal = training_state(fast).loss
    large = random_batch(setting.sizes, setting.evaluation_batch, setting.device)
    gallery, ids = SyntheticGallery(large, 2), [large.ids] * 2

    def training(*, graphs: bool = False, times: int = 1) -> Way:
        return training_step(replace(setting, steps=times * steps), batch, fast, cuda_graphs=graphs)

    def scoring(*, graphs: bool = False, times: int = 1) -> Way:
        settings = LoopSettings(cuda_graphs=graphs)
        return lambda: score_pairs(fast, tal, [batch] * times * steps, setting.batch, settings)

    def encoding() -> Encoded:
        return encode(fast, gallery)

    passes: dict[str, tuple[Way, dict[str, Way], int]] = {
        "training step": (plain_training_step(setting, batch, slow), _with_graphs(setting, training), pairs),
        "CCD pass": (
            lambda: plain.score_pairs(slow, [batch] * steps, setting.batch),
            _with_graphs(setting, scoring),
            pairs,
        ),
        "evaluation encoding": (
            lambda: plain.encode_twice(slow, gallery.image_batches(), ids),
            {"": encoding},
            len(gallery.image_pids),
        ),
    }
    rows = []
    for what, (plainly, ways, count) in passes.items():
        seconds = interleaved({"plain": plainly} | ways, setting.repeats, setting.device)
        if _TWICE in ways:  # subtract the time of capturing, which is the same for both
            seconds[_GRAPHS] = seconds.pop(_TWICE) - seconds[_GRAPHS]
        flop = count_flop(ways[""]) / count
        rows += [
            compare(what + flags, {"plain": seconds["plain"], "ours": ours_seconds}, count)
            | {"GFLOP a pair": flop / 1e9, "share of matrix rate": flop * count / ours_seconds / peak}
            for flags, ours_seconds in seconds.items()
            if flags != "plain"
        ]
    rows.append({"what": "matrix rate, TFLOP/s", "value": peak / 1e12})
    if setting.device.type == "cuda":
        waits = _waits(training_step(setting, batch, fast)) - _waits(lambda: None)
        rows.append({"what": f"waits for the device in {steps} training steps and a line of the log", "value": waits})
    return rows


_GRAPHS, _TWICE = " --cuda_graphs, captured", " --cuda_graphs, twice"


def _with_graphs(setting: Setting, way: Callable[..., Way]) -> dict[str, Way]:
    """Eager and, on CUDA, with `--cuda_graphs` for one and two times the batches, by suffix of the row's name."""
    if setting.device.type != "cuda":
        return {"": way()}
    return {"": way(), _GRAPHS: way(graphs=True), _TWICE: way(graphs=True, times=2)}


def _batch(setting: Setting) -> Batch:
    return random_batch(setting.sizes, setting.batch, setting.device)


def _waits(way: Way) -> int:
    """Number of CUDA synchronisations that torch notices."""
    way()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            way()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(caught)


LEVERS = {
    "attention maps in every layer": "maps",
    "QuickGELU by its formula": "gelu",
    "all tokens through the last block": "whole",
    "captions padded to 77": "padded",
    "captions pooled one by one": "loops",
    "float32 products on the CPU by MKL": "mkl",
}


def levers(setting: Setting) -> Rows:
    """Slowdown of the passes with one optimisation off at a time, and effect of flags that are off by default."""
    batch, model, pairs = _batch(setting), ours(setting), setting.batch * setting.steps
    fast = PlainModel(model, **dict.fromkeys(LEVERS.values(), False))
    models = {"all on": fast} | {name: replace(fast, **{part: True}) for name, part in LEVERS.items()}
    fused, single = build_optimizer(*optimizer_arguments(model)), plain.build_optimizer(*optimizer_arguments(model))
    training = {name: training_step(setting, batch, encoders, fused) for name, encoders in models.items()}
    training["a group for every parameter, not fused"] = training_step(setting, batch, fast, single)
    training["each step's loss waited for"] = training_step(setting, batch, fast, fused, log_period=1)
    training["--grad_checkpointing"] = _checkpointed(model, training["all on"])
    # Other models are timed separately: the first step after another model's allocates memory again.
    other = "bf16" if setting.precision == "fp32" else "fp32"
    others = {"all on": training["all on"]}
    others[f"--precision {other}"] = training_step(setting, batch, ours(replace(setting, precision=other)))
    if setting.scale == 1:  # compiling takes a minute
        compiled = ours(setting)
        compiled.backbone.compile_blocks()
        others["--compile"] = training_step(setting, batch, compiled)
    batches = [batch] * setting.steps
    scoring = {
        "all on": lambda: score_pairs(as_encoder(fast), training_state(model).loss, batches, pairs),
        "CCD's losses kept pair by pair": lambda: plain.score_pairs(fast, batches, pairs),
    }
    gallery = SyntheticGallery(batch, 2)
    encoding: dict[str, Way] = {name: partial(encode, encoders, gallery) for name, encoders in models.items()}
    encoding["one encoding pass for each embedding"] = lambda: [encode(fast, gallery) for _ in range(2)]
    rows: dict[str, dict] = {}
    passes = (
        ("training step", training),
        ("training step", others),
        ("CCD pass", scoring),
        ("evaluation encoding", encoding),
    )
    for what, ways in passes:
        seconds = interleaved(ways, setting.repeats, setting.device)
        for name, value in seconds.items():
            rows.setdefault(name, {"instead": name})[f"{what}, times"] = value / seconds["all on"]
    return list(rows.values())


def _checkpointed(model: DualEncoder, step: Way) -> Way:
    def way() -> None:
        model.backbone.set_grad_checkpointing(True)
        step()
        model.backbone.set_grad_checkpointing(False)

    return way


def growth(setting: Setting) -> Rows:
    """Training steps at a quarter, half and all of the batch size."""
    rows = []
    slow, fast = plain_and_ours(setting)
    for size in sorted({max(2, setting.batch // divisor) for divisor in (4, 2, 1)}):
        part = replace(setting, batch=size)
        batch = _batch(part)
        ways = {"plain": plain_training_step(part, batch, slow), "ours": training_step(part, batch, fast)}
        seconds = interleaved(ways, setting.repeats, setting.device)
        rows.append(compare(f"batch {part.batch}", seconds, part.batch * part.steps))
    return rows
