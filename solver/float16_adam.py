"""The published code's Adam without the hazards of float16: it rounds the same way, but never loses a step."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

_LARGEST = torch.finfo(torch.float16).max


class Float16Adam(torch.optim.Adam):
    """Adam that, for some parameters, rounds gradient, moments and denominator to float16 after every operation.

    That is what unfused Adam does with float16 weights. Here weights are float32 and aren't rounded, so steps below
    half a unit in a float16 weight's last place aren't lost; and overflow saturates at float16's maximum instead of
    infinity, so nothing becomes NaN and no second moment stays infinite. Other parameters are updated in their own
    dtype.

    Args:
        groups: parameter groups, as for any optimizer.
        rounded: the parameters whose steps are rounded. Their moments are stored in float32, a superset of float16.
        settings: `torch.optim.Adam`'s lr, betas and eps.
    """

    def __init__(self, groups: list[dict[str, Any]], rounded: Collection[nn.Parameter], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._rounded = set(rounded)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002
        """Take a step for all parameters with gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, raw_gradient: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[parameter]
        if not state:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            state.update(step=torch.tensor(0.0), **moments)
        state["step"] += 1
        steps = state["step"].item()
        weight, gradient, m, v = parameter, raw_gradient, state["exp_avg"], state["exp_avg_sq"]
        if parameter in self._rounded:
            weight, gradient, m, v = (x.clamp(-_LARGEST, _LARGEST).half() for x in (weight, gradient, m, v))
        gradient = gradient.add(weight, alpha=group["weight_decay"])
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).clamp_(max=torch.finfo(v.dtype).max)
        denominator = (v.sqrt() / (1 - beta2**steps) ** 0.5).add_(group["eps"])
        state["exp_avg"].copy_(m)
        state["exp_avg_sq"].copy_(v)
        step_size = group["lr"] / (1 - beta1**steps)
        parameter.addcdiv_(m.to(parameter.dtype), denominator.to(parameter.dtype), value=-step_size)
