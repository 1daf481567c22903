"""Memory of a training step: counted and, on a GPU, measured."""

from __future__ import annotations

import torch

from benchmarks.encoders import training_step
from benchmarks.measure import count_kept_bytes
from benchmarks.plain import PlainModel
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import random_batch, random_model
from model.encoder import DualEncoder

BATCH = 64


def memory(setting: Setting) -> Rows:
    """Memory kept for the backward pass, counted on small batches: per pair, and a constant for half-precision copies
    of the weights. With the weights and Adam's two moments this gives the peak at batch 64, because gradients are
    allocated while activations are freed."""
    rows = []
    for precision in dict.fromkeys(("fp32", "bf16", setting.precision)):
        for name in ("plain", "ours", "--grad_checkpointing"):
            model = random_model(setting.sizes, setting.device, precision).train()
            model.backbone.set_grad_checkpointing(name == "--grad_checkpointing")
            encoders = PlainModel(model) if name == "plain" else model
            two, four = (_kept(setting, encoders, model, pairs) for pairs in (2, 4))
            pair = (four - two) / 2
            states = 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            states += two - 2 * pair
            row = {
                "way": f"{name}, {precision}",
                "kept a pair, MB": pair / 1e6,
                "weights and Adam, GB": states / 1e9,
                f"counted at batch {BATCH}, GB": (states + BATCH * pair) / 1e9,
            }
            if setting.device.type == "cuda":
                row[f"measured at batch {BATCH}, GB"] = _measured(setting, encoders)
            rows.append(row)
    return rows


def _kept(setting: Setting, encoders: PlainModel | DualEncoder, model: DualEncoder, pairs: int) -> int:
    batch = random_batch(setting.sizes, BATCH, setting.device)
    images, ids = batch.images[:pairs], batch.ids[:pairs]  # padded to the longest caption of the whole batch
    return count_kept_bytes(lambda: encoders(images, ids), model)


def _measured(setting: Setting, model: PlainModel | DualEncoder) -> float:
    """Peak memory of training steps on the GPU, in 10⁹ bytes."""
    batch = random_batch(setting.sizes, BATCH, setting.device)
    step = training_step(setting, batch, model)
    torch.cuda.reset_peak_memory_stats(setting.device)
    step()
    torch.cuda.synchronize(setting.device)
    return torch.cuda.max_memory_allocated(setting.device) / 1e9
