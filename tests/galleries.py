"""An untrained run and a folder of images, for tests of search."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from assembly import build
from datasets.synthpedes import Recipe, write_synthpedes
from options import resolve
from tests import small_clip
from utils.checkpoints import save_checkpoint
from utils.run_folder import RunFolder

SIZE = (96, 32)


def write_run(run_dir: Path, seed: int = 1, clip: str = str(small_clip.FILE)) -> Path:
    """A run's folder with a pretrained CLIP and untrained TSE heads."""
    torch.manual_seed(seed)
    flags = {
        "img_size": SIZE,
        "stride_size": 8,
        "pretrain_choice": clip,
        "num_workers": 0,
        "dataset_name": "SynthPEDES",
    }
    options = resolve(flags)
    model = build(options)
    run_dir.mkdir(parents=True)
    RunFolder(run_dir).write_config(options, {})
    save_checkpoint({"format": 1, "model": model.published_state(), "epoch": 0}, run_dir / "best.pth")
    return run_dir


class Gallery(NamedTuple):
    """A folder of images in subfolders, with the content of each by relative path."""

    folder: Path
    captions: dict[str, str]


def write_gallery(folder: Path, persons: int = 12) -> Gallery:
    """Two rendered images per person, and a caption of each."""
    rendered = folder.with_name(folder.name + "_rendered")
    recipe = Recipe({"test": persons}, {"test": 2}, 1, seed=5, difficulty=0.2, attributes_named=(6, 9), rich_colours=0)
    write_synthpedes(rendered, recipe)
    captions = {}
    for number, record in enumerate(json.loads((rendered / "reid_raw.json").read_text())):
        path = Path(f"camera {number % 3}") / f"{number:02d}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(rendered / "imgs" / record["file_path"], folder / path)
        captions[path.as_posix()] = record["captions"][0]
    shutil.rmtree(rendered)
    return Gallery(folder, captions)


def write_bomb(file: Path, side: int = 20_000) -> None:
    """A PNG of a few bytes that claims to have side² pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def write_large(file: Path) -> None:
    """A JPEG of 40 megapixels."""
    Image.new("RGB", (5000, 8000), (200, 30, 30)).save(file, quality=50)
