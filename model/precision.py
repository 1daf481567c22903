"""A model's arithmetic: float32, autocast, or float16 where the published code uses it (docs/arithmetic.md)."""

from __future__ import annotations

import torch
from torch import nn

# Description of each precision.
ARITHMETIC = {
    "fp32": "float32",
    "bf16": "bfloat16 products (autocast), float32 weights and Adam",
    "fp16": "float16 products (autocast) of a scaled loss, float32 weights and Adam",
    "fp16_weights": "float16 weights, products, gradients and Adam, without loss scaling, as in the published code",
    "fp16_adam": "float32 weights and products; Adam rounds gradients and moments to float16 as in the published code",
}
PRECISIONS = tuple(ARITHMETIC)
PUBLISHED = "fp16_weights"
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# In float16 in the published code; embeddings and norms stay float32.
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_ATTENTION = {f"{which}_proj_weight" for which in ("in", "q", "k", "v")} | {"in_proj_bias", "bias_k", "bias_v"}
_PRODUCTS_BY_NAME = _ATTENTION | {"proj", "text_projection"}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve `--precision` to one of `PRECISIONS`: "published" is the paper's on a CUDA device, else float32."""
    if precision != "published":
        return precision
    return PUBLISHED if device.type == "cuda" else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass; only "bf16" and "fp16" have an effect."""
    return torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST)


def half_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the published code trains in float16, by name.

    They are those of linear and convolution layers and, identified by name, of attention and CLIP's projections.
    """
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _PRODUCTS) or name in _PRODUCTS_BY_NAME
    }


def convert_weights_to_half(model: nn.Module) -> None:
    """Convert `half_parameters` to float16, in place."""
    for parameter in half_parameters(model).values():
        parameter.data = parameter.data.half()
