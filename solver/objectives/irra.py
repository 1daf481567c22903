"""Learning rates of IRRA's objectives with parameters (Jiang and Ye, CVPR 2023)."""

from __future__ import annotations

from solver.settings import OptimizerSettings


def irra_rate(parameter: str, optimizer: OptimizerSettings, factor: float) -> float:
    """IRRA's learning rate for one of its new parameters, given its published name."""
    if "classifier" in parameter or "mlm_head" in parameter:
        return optimizer.lr * factor
    if "bias" in parameter:
        return optimizer.lr * optimizer.bias_lr_factor
    return optimizer.lr * (factor if "cross" in parameter else 1)
