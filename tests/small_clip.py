"""The smallest CLIP that the commands accept, for tests in which retrieval accuracy doesn't matter.

With heads it has a fifth of the built-in one's parameters. The file was written by `python -m tests.small_clip`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from model.backbones.clip import Clip
from model.backbones.clip_config import ClipConfig
from model.backbones.transformer import Tower
from model.pretrained import compact_rows

FILE = Path(__file__).with_name("small_clip.safetensors")
CONFIG = ClipConfig(
    image=Tower(width=32, layers=1, heads=1, activation="quick_gelu"),
    text=Tower(width=16, layers=1, heads=1, activation="quick_gelu"),
    patch=8,
    stride=8,
    grid=(7, 7),
    text_length=77,
    vocab_size=49408,
    shared_width=32,
)

if __name__ == "__main__":
    torch.manual_seed(0)
    state = {name: value.half() for name, value in Clip(CONFIG).published_state().items()}
    save_file(compact_rows(state, torch.tensor([CONFIG.vocab_size - 1])), FILE)
