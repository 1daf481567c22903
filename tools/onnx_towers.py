"""Towers with their heads in ONNX: uint8 pixels or token ids in, one embedding per head out.

Batch size and text length are dynamic. Each file records a fingerprint of its weights, so that files can't be mixed up.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.encoder import DualEncoder
from tools.loading import require
from utils.errors import OptionError, brief
from utils.files import atomic_write
from utils.settings import Options

IMAGE, TEXT = "image.onnx", "text.onnx"
FINGERPRINT = "fingerprint"  # metadata key: `tools.search.encode.fingerprint` of the model
REQUIREMENTS = "requirements-onnx.txt"
_MAX_COUNT = 1 << 16  # maximum batch size


class _ImageTower(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):  # replaces the backbone's, so that images aren't normalised twice
            self.register_buffer(name, 255 * torch.tensor(getattr(model.backbone, name)).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) uint8 → each head's (B, width) embedding."""
        images = (pixels.float() - self.mean) / self.std
        return tuple(self.model.embed("image", self.model.backbone.encode_image(images)).values())


class _TextTower(nn.Module):
    def __init__(self, model: DualEncoder, text_length: int) -> None:
        super().__init__()
        self.model, self.text_length = model, text_length

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """(B, L) token ids → each head's (B, width) embedding; padding to full length doesn't change them."""
        ids = F.pad(ids, (0, self.text_length - ids.shape[1]))
        return tuple(self.model.embed("text", self.model.backbone.encode_text(ids)).values())


def write_towers(model: DualEncoder, options: Options, fingerprint: str, out: Path) -> list[Path]:
    """Write `IMAGE` and `TEXT` into a folder.

    Args:
        options: the run's options.

    Raises:
        OptionError: a package is missing, or ONNX can't express the model.
    """
    require("onnxscript", REQUIREMENTS)
    model, size, text_length = model.cpu().float().eval(), options.img_size, options.text_length
    batch = torch.export.Dim("batch", min=1, max=_MAX_COUNT)
    length = torch.export.Dim("length", min=2, max=text_length)
    pixels = torch.zeros(2, 3, *size, dtype=torch.uint8)
    ids = torch.ones(2, text_length - 1, dtype=torch.long)
    parts: list[tuple[str, nn.Module, str, Tensor, dict[int, Any]]] = [
        (IMAGE, _ImageTower(model), "pixels", pixels, {0: batch}),
        (TEXT, _TextTower(model, text_length), "ids", ids, {0: batch, 1: length}),
    ]
    files = []
    for name, tower, input_name, example, dynamic in parts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program: Any = torch.onnx.export(
                    tower.eval(),
                    (example,),
                    dynamo=True,
                    dynamic_shapes=(dynamic,),
                    input_names=[input_name],
                    output_names=list(model.widths),
                    custom_translation_table={torch.ops.aten.sort.stable: _sort_stable},
                    verbose=False,
                )
        except Exception as error:  # the exporter raises many types
            raise OptionError(f"--onnx: {name} can't be exported from this model: {brief(error)}") from None
        program.model.metadata_props[FINGERPRINT] = fingerprint
        with atomic_write(out / name) as partial:
            program.save(partial, external_data=False)
        files.append(out / name)
    return files


def _sort_stable(scores: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
    """torch's stable sort, which the exporter lacks, as ONNX's TopK of all elements, which keeps the order of ties."""
    from onnxscript import opset18

    op: Any = opset18  # its annotations refuse its own results
    count = op.Gather(op.Shape(scores), op.Constant(value_ints=[dim]))
    return op.TopK(scores, count, axis=dim, largest=1 if descending else 0, sorted=1)
