"""Train `model/tiny_clip.safetensors`, the small pretrained CLIP for the built-in data set.

    python -m tools.pretrain_tiny

It plays the role that OpenAI's ViT-B/16 has for the real data sets: same architecture code, contrastive pretraining on
square images of other persons, positional embeddings resized on loading. Like CLIP, which has not seen annotators'
captions, it leaves RDE something to learn: it knows only plain colour names, while captions of the built-in data set
also say crimson, navy or charcoal.

CLIP, trained on all kinds of images, embeds pedestrians in a narrow cone: their cosines vary by a few hundredths, not
much more than TAL's temperature, so that many negatives share its gradient. A model trained only on pedestrians spreads
them over the whole sphere, where TAL becomes TRL. The embeddings are therefore shifted into a cone at the end.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from datasets.annotations import Split, read_splits
from datasets.image_cache import CachedImages, open_images
from datasets.loaders import LoadingSettings, TrainingPairs
from datasets.synthpedes import ANNOTATIONS, Recipe, write_synthpedes
from datasets.tokenizer import Tokenizer
from model.accelerate import accelerate
from model.backbones.clip import Clip
from model.backbones.clip_config import ClipConfig
from model.backbones.transformer import Tower
from model.heads.bge import GlobalEmbedding
from model.pretrained import BUILT_IN, compact_rows
from utils.devices import seed_everything
from utils.files import atomic_write, require_writable
from utils.program import run_program

CONFIG = ClipConfig(
    image=Tower(width=128, layers=3, heads=2, activation="quick_gelu"),
    text=Tower(width=128, layers=2, heads=2, activation="quick_gelu"),
    patch=8,
    stride=8,
    grid=(7, 7),
    text_length=77,
    vocab_size=49408,
    shared_width=256,
)
RECIPE = Recipe(
    identities={"train": 3000},
    images_per_identity={"train": 2},
    captions_per_image=2,
    seed=77,
    difficulty=0.3,
    attributes_named=(6, 10),
    rich_colours=0.0,
)
SEED, BATCH, LR, WARMUP = 77, 128, 1e-3, 100
TEMPERATURE = 0.01  # final value of CLIP's learned temperature
CONE = 2.0  # norm of the shared component of all embeddings, relative to the individual one


def draw(folder: Path) -> tuple[Split, CachedImages, np.ndarray]:
    """Render the pretraining pairs and read them: the split, (I, 3, 56, 56) images, token ids."""
    write_synthpedes(folder / "pairs", RECIPE)
    split = read_splits(str(folder / "pairs" / ANNOTATIONS), folder, ["train"])["train"]
    size = (CONFIG.grid[0] * CONFIG.patch, CONFIG.grid[1] * CONFIG.patch)
    images = open_images(split.images, size, folder / "cache")
    return split, images, Tokenizer()(split.captions, CONFIG.text_length)


def pretrain(model: Clip, pairs: TrainingPairs, epochs: int) -> None:
    """Train with CLIP's symmetric contrastive loss at a fixed temperature."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    summary, step = GlobalEmbedding(CONFIG.shared_width, 0), 0
    for epoch in range(epochs):
        batches = pairs.training_batches(epoch)
        start, total = time.perf_counter(), 0.0
        for batch in batches:
            done = step / (epochs * len(batches))
            rate = LR * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            image = F.normalize(summary(model.encode_image(batch.images)), dim=1)
            text = F.normalize(summary(model.encode_text(batch.ids)), dim=1)
            logits = image @ text.T / TEMPERATURE
            target = torch.arange(len(text))
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total, step = total + loss.item(), step + 1
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(batches):.3f}, {seconds:.0f} s", flush=True)


@torch.no_grad()
def shift_into_cone(model: Clip) -> None:
    """Add a direction shared by both modalities to all embeddings, through the last LayerNorms' biases."""
    image, text = (model.visual.ln_post, model.visual.proj), (model.ln_final, model.text_projection)
    left, _, right = torch.linalg.svd(image[1] @ text[1].T)
    sign = -1 if image[0].bias @ left[:, 0] < 0 else 1  # the sign of the pair is arbitrary
    for (norm, projection), direction in ((image, sign * left[:, 0]), (text, sign * right[0])):
        spread, shared = norm.weight[:, None] * projection, norm.bias @ projection
        length = (spread.norm() ** 2 + shared.norm() ** 2).sqrt()  # approximate norm of an embedding
        norm.bias += CONE * length / (direction @ projection).norm() * direction


def main(argv: Sequence[str]) -> None:
    """Render, train, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=7, help="passes over the pairs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=BUILT_IN["tiny"], help="file to write (default: the built-in)")
    args = parser.parse_args(argv)
    if args.epochs < 1 or not args.out.parent.is_dir():
        parser.error("--epochs must be at least 1, and the folder of --out must exist")
    require_writable(args.out)
    seed_everything(SEED)
    with tempfile.TemporaryDirectory() as folder:
        split, images, ids = draw(Path(folder))
        settings = LoadingSettings(BATCH, torch.device("cpu"), seed=SEED)
        pairs = TrainingPairs(split, images, ids, np.arange(len(ids)), settings)
        model = accelerate(Clip(CONFIG))
        for norm in (model.visual.ln_post, model.ln_final):
            torch.nn.init.normal_(norm.bias, std=2.0)  # each modality shares a direction from the start
        pretrain(model, pairs, args.epochs)
    shift_into_cone(model.half().float())  # with the weights as saved
    used = torch.from_numpy(np.union1d(ids, [CONFIG.vocab_size - 1])).long()
    state = compact_rows(model.published_state(), used)
    with atomic_write(args.out) as partial:
        save_file({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, partial)
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_program(main)
