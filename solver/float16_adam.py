"""The published code's Adam without float16's dangers: it rounds as theirs does, and no step of it is lost."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

_LARGEST = torch.finfo(torch.float16).max


class Float16Adam(torch.optim.Adam):
    """Adam, for some parameters with gradient, moments and denominator rounded to float16 after every operation.

    That is how it steps on float16 weights unless it is fused. Here the weights are float32 and are not rounded, so a
    step below half a unit in their last place is not lost; and what exceeds float16 is its largest number, not
    infinite, so nothing becomes NaN, and no second moment stays infinite for ever. The other parameters are stepped in
    their own type.

    Args:
        groups: of parameters, as for every optimizer.
        rounded: the parameters to round for. Their moments are kept in float32, which holds all of float16.
        settings: `torch.optim.Adam`'s lr, betas and eps.
    """

    def __init__(self, groups: list[dict[str, Any]], rounded: Collection[nn.Parameter], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._rounded = set(rounded)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002
        """One step with the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, own: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[parameter]
        if not state:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            state.update(step=torch.tensor(0.0), **moments)
        state["step"] += 1
        steps = state["step"].item()
        weight, gradient, m, v = parameter, own, state["exp_avg"], state["exp_avg_sq"]
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
