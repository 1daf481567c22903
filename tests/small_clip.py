"""The smallest CLIP that the commands take, for tests in which it does not matter how well it retrieves.

With its heads it has a fifth of the parameters that the built-in one has. `python -m tests.small_clip` made the file.
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
