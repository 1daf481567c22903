"""Draw docs/float16_adam.png: the size of Adam's steps in float16, and which steps change the weights.

python -m tools.float16_picture
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from solver.float16_adam import Float16Adam
from tools.readme_pictures import DOCS, shrink
from utils import figures
from utils.options import command_parser, parse
from utils.program import run_program

ADAM = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-3}
# (1 − β₂)g² rounds to 0 if g is below √(half of float16's smallest number / (1 − β₂)), and to infinity above 8,094.
VANISHES = (2**-25 / (1 - 0.999)) ** 0.5
RATES = {"towers, 1e-5": 1e-5, "their biases, 2e-5": 2e-5, "heads, 1e-3": 1e-3}


def main(argv: Sequence[str]) -> None:
    """Write the picture."""
    parse(command_parser("tools.float16_picture", __doc__), argv)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw_steps(left)
    draw_lost_steps(right)
    with TemporaryDirectory() as folder:
        file = Path(folder, "float16_adam.png")
        figures.save(figure, file)
        shrink(file, DOCS / file.name)


def first_steps(gradients: torch.Tensor, *, rounded: bool) -> np.ndarray:
    """(N,) sizes of Adam's first step, in units of the learning rate, for (N,) gradients."""
    weights = torch.nn.Parameter(torch.zeros_like(gradients))
    weights.grad = gradients.clone()
    Float16Adam([{"params": [weights]}], [weights] if rounded else [], **ADAM).step()
    return weights.detach().abs().numpy()


def draw_steps(axes: Axes) -> None:
    """Plot the first step's size against the gradient's, in float32 and in float16."""
    g = torch.logspace(-5, 0, 4000)
    axes.loglog(g, first_steps(g, rounded=False), color=figures.CLEAN, label="float32 (and a fused float16 Adam)")
    axes.loglog(g, first_steps(g, rounded=True), color=figures.NOISY, label="float16, operation by operation")
    axes.axvline(VANISHES, color=figures.BLACK, linestyle=":", linewidth=1)
    axes.text(0.6 * VANISHES, 6, "here (1 − β₂)g² is 0:\nthe step is lr·m/eps", ha="right", fontsize=8)
    axes.set(xlabel="|g|", ylabel="size of the first step / learning rate", ylim=(1e-2, 12))
    axes.set_title("Another optimizer", fontsize=10)
    finish(axes)


def draw_lost_steps(axes: Axes) -> None:
    """Plot half a unit in the last place of a float16 weight, and steps as large as the learning rates."""
    weights = torch.logspace(-4, 0.5, 4000).half()
    upwards = torch.nextafter(weights, torch.full_like(weights, torch.inf))
    half_unit = ((upwards.float() - weights.float()) / 2).numpy()
    axes.loglog(weights.float(), half_unit, color=figures.NOISY, label="half a unit in the weight's last place")
    axes.fill_between(weights.float(), 1e-8, half_unit, color=figures.NOISY, alpha=0.15, label="a step here is lost")
    for (name, rate), line in zip(RATES.items(), ("-", "--", ":"), strict=True):
        axes.axhline(rate, color=figures.CLEAN, linestyle=line, linewidth=1.2, label=f"a step of one rate: {name}")
    axes.set(xlabel="|weight|", ylabel="step", ylim=(1e-8, 3e-3))
    axes.set_title("Lost steps", fontsize=10)
    finish(axes)


def finish(axes: Axes) -> None:
    """Format tick labels without math text, which the house style doesn't parse."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    run_program(main)
