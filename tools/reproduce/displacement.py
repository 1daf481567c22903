"""How far a run moved its weights."""

from __future__ import annotations

from pathlib import Path

from assembly import build
from options import resolve
from utils.checkpoints import load_checkpoint, without_objectives
from utils.devices import seed_everything
from utils.run_folder import RunFolder


def displacement(run_dir: Path) -> dict[str, float]:
    """L2 distance between the parameters of last.pth and the initial ones, of the "towers" and of the new "heads".

    Raises:
        UserError: the configuration, the pretrained weights or last.pth can't be read.
    """
    options = resolve({"config": str(RunFolder(run_dir).config)})
    seed_everything(options.seed)  # draws the same initial heads
    model, last = build(options), run_dir / "last.pth"
    new, starts = model.new_parameters(), {name: end.detach().double() for name, end in model.named_parameters()}
    model.load_published(without_objectives(load_checkpoint(last)), str(last))
    squares = {"towers": 0.0, "heads": 0.0}
    for name, end in model.named_parameters():
        moved = end.detach().double() - starts[name]
        squares["heads" if name in new else "towers"] += moved.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}
