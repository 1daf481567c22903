"""How far a run moved its weights."""

from __future__ import annotations

from pathlib import Path

from model.names import from_published
from model.weights import build_model
from utils.checkpoints import load_checkpoint
from utils.options import resolve
from utils.program import seed_everything

_OF_MODEL = ("text_length", "vocab_size", "activation", "select_ratio", "tse_bn", "tse_head", "tse_pool", "precision")


def displacement(run_dir: Path) -> dict[str, float]:
    """The norm of last.pth's parameters less those the run began with, of the "towers" and of the new "heads".

    Raises:
        UserError: the configuration, the pretrained weights or last.pth can't be read.
    """
    options = resolve({"config": str(run_dir / "configs.yaml")})
    seed_everything(options.seed)  # from which the heads were drawn
    kind = {name: options[name] for name in _OF_MODEL}
    model = build_model(options.pretrain_choice, image_size=options.img_size, stride=options.stride_size, **kind)
    last = run_dir / "last.pth"
    end, new = from_published(load_checkpoint(last)["model"], str(last)), model.new_parameters()
    squares = {"towers": 0.0, "heads": 0.0}
    for name, start in model.named_parameters():
        moved = end[name].double() - start.detach().double()
        squares["heads" if name in new else "towers"] += moved.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}
