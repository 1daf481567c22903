"""Settings of the model. No heavy imports, for a fast `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from utils.errors import OptionError
from utils.registry import Registry
from utils.settings import option, settings

BACKBONES = Registry(
    "backbone", {"clip": "model.backbones.clip", "open_clip": "model.backbones.open_clip"}, variants=True
)
HEADS = Registry("head", {"BGE": "model.heads.bge", "TSE": "model.heads.tse"})
T = TypeVar("T")


class SettingsOf(Protocol):
    """Returns the typed object of a settings class: `utils.settings.Options.of`."""

    def __call__(self, owner: type[T], /) -> T: ...


@settings("the run")
@dataclass(frozen=True)
class PrecisionSettings:
    """The model's arithmetic."""

    precision: str = option(
        "fp32",
        "fp32; bf16 or fp16: autocast; fp16_weights: as published, weights and Adam in float16, no loss scaling; "
        "fp16_adam: only Adam rounds like that; published: fp16_weights on CUDA, else fp32",
        choices=("fp32", "bf16", "fp16", "fp16_weights", "fp16_adam", "published"),
        tested=True,
    )


@settings("model")
@dataclass(frozen=True)
class ModelSettings:
    """Settings common to all backbones and heads."""

    backbone: str = option(
        "clip",
        "the dual encoder: clip, or open_clip:NAME for a model of open_clip (weights file in pretrain_choice)",
        choices=BACKBONES,
        tested=True,
    )
    heads: str = option("BGE+TSE", "the embeddings, joined by +", tested=True)
    pretrain_choice: str = option(
        "ViT-B/16",
        "ViT-B/16, ViT-B/32, ViT-L/14 (downloaded once), tiny (built in), or a file",
        path="or name",
    )
    img_size: tuple[int, int] = option((384, 128), "height and width of the images", low=1, length=2, tested=True)
    text_length: int = option(
        77, "maximum number of tokens per caption; text positions are cut or interpolated to fit", low=3, tested=True
    )
    grad_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time", resumable=True
    )
    compile: bool = option(
        False,
        "torch.compile the towers, which takes a minute at the start; for GPUs (needs a C++ compiler)",
        resumable=True,
    )


@settings("model")
@dataclass(frozen=True)
class ClipSettings:
    """Settings of the backbone "clip"."""

    activation: str = option(
        "auto",
        "activation of both towers: quick_gelu, gelu or auto (the configuration's beside the weights, else QuickGELU)",
        choices=("auto", "quick_gelu", "gelu"),
        tested=True,
    )
    stride_size: int = option(16, "stride of the patches, in pixels", low=1, tested=True)
    vocab_size: int = option(49408, "size of the vocabulary", low=1, tested=True)


@settings("model")
@dataclass(frozen=True)
class TseSettings:
    """Settings of the head "TSE" (paper, 3.1 and table 7).

    Attributes:
        tse_bn: "frozen": in training the BatchNorm uses its initial statistics, so it is a learned affine map, as for
            the paper's numbers; "batch": it uses batch statistics, as in a later revision of the code (slightly better
            on clean data, worse under noise, according to the authors).
    """

    select_ratio: float = option(0.3, "ratio R of tokens that TSE selects", above=0, below=1, tested=True)
    tse_bn: str = option(
        "frozen", "TSE's BatchNorm in training: frozen, as in the paper, or batch", choices=("frozen", "batch")
    )
    tse_head: str = option(
        "mlp", "FC + MLP on the selected tokens, or none (table 7's TSE′)", choices=("mlp", "none"), tested=True
    )
    tse_pool: str = option(
        "max", "pooling of the selected tokens (table 7)", choices=("max", "avg", "topk10"), tested=True
    )


def head_names(heads: str) -> list[str]:
    """The names in a value of `--heads`.

    Raises:
        OptionError: a name is unknown, or given twice.
    """
    names = heads.split("+")
    for name in names:
        if name not in HEADS:
            raise OptionError(f"--heads {heads}: choose from {', '.join(HEADS)}, joined by +")
    if len(set(names)) < len(names):
        raise OptionError(f"--heads {heads}: names a head twice")
    return names
