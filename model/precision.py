"""The arithmetic of a model: float32, autocast, or weights in float16 as the published code trains them."""

from __future__ import annotations

import torch
from torch import nn

from model.clip import CLIP, Attention, VisionTransformer
from model.linear import Linear

PRECISIONS = ("fp32", "bf16", "fp16", "fp16_weights")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Modules and those of their own parameters that the published code keeps in float16; embeddings and norms stay float32.
_HALF = {
    Linear: ("weight", "bias"),
    nn.Conv2d: ("weight", "bias"),
    Attention: ("in_proj_weight", "in_proj_bias"),
    VisionTransformer: ("proj",),
    CLIP: ("text_projection",),
}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context a forward pass runs in; it does nothing with "fp32" and "fp16_weights"."""
    return torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST)


def halve_weights(model: nn.Module) -> None:
    """Turn the weights of linear, convolution, attention and projection layers into float16, in place."""
    for module in model.modules():
        for name in _HALF.get(type(module), ()):
            parameter = getattr(module, name)
            if parameter is not None:
                parameter.data = parameter.data.half()
