"""A CLIP's configuration: shapes come from tensors, attention heads and activations from configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from model.backbones.base import Log
from model.backbones.transformer import Tower
from model.pretrained import Pretrained
from model.towers import OPENAI_WIDTHS, Towers, assumed
from utils.errors import WeightsError


@dataclass(frozen=True)
class ClipConfig:
    """Everything needed to build a CLIP; `grid` is the number of patches (rows, columns)."""

    image: Tower
    text: Tower
    patch: int
    stride: int
    grid: tuple[int, int]
    text_length: int
    vocab_size: int
    shared_width: int


def read_config(
    state: Mapping[str, Tensor], source: str, *, towers: Towers | None = None, stride: int | None = None
) -> ClipConfig:
    """The configuration of the CLIP in a state dict (OpenAI's names).

    Args:
        source: named in messages.
        towers: attention heads and activations; default: OpenAI's.
        stride: defaults to the patch size.

    The grid is assumed to be square, as in every pretrained CLIP.

    Raises:
        WeightsError: a tensor that determines a size is missing or has the wrong number of dimensions; or `towers`
            describes another model.
    """
    try:
        image_width, _, patch, _ = state["visual.conv1.weight"].shape
        positions, _ = state["visual.positional_embedding"].shape
        text_length, text_width = state["positional_embedding"].shape
        vocab_size, _ = state["token_embedding.weight"].shape
        _, shared_width = state["text_projection"].shape
        if min(image_width, patch, positions - 1, text_length, text_width, vocab_size, shared_width) < 1:
            raise ValueError
    except KeyError as missing:
        raise WeightsError(f"{source} is not a CLIP vision transformer: {missing} is missing") from None
    except ValueError:
        raise WeightsError(f"{source} is not a CLIP vision transformer: its tensors have other dimensions") from None
    inferred = Towers(
        assumed(image_width, _count_layers(state, "visual.transformer.resblocks.")),
        assumed(text_width, _count_layers(state, "transformer.resblocks.")),
    )
    towers = towers or inferred
    for name, stated, actual in zip(Towers._fields, towers, inferred, strict=True):
        if (stated.width, stated.layers) != (actual.width, actual.layers):
            raise WeightsError(
                f"{source}: the {name} tower has {actual.layers} layers of width {actual.width}, but its "
                f"configuration says {stated.layers} of {stated.width}; is it for another model?"
            )
    side = round((positions - 1) ** 0.5)
    return ClipConfig(
        *towers,
        patch=patch,
        stride=stride or patch,
        grid=(side, side),
        text_length=text_length,
        vocab_size=vocab_size,
        shared_width=shared_width,
    )


def _count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def with_activation(towers: Towers, activation: str) -> Towers:
    """Both towers with another activation; unchanged for "auto"."""
    return towers if activation == "auto" else Towers(*(replace(tower, activation=activation) for tower in towers))


def decide_towers(pretrained: Pretrained, towers: Towers, activation: str, source: str, log: Log) -> Towers:
    """The towers to build: known or assumed ones.

    Raises:
        WeightsError: the number of attention heads is unknown and the widths are not those of OpenAI's models.
    """
    unknown = pretrained.towers is None and not pretrained.known
    if unknown and (odd := [name for name, tower in towers._asdict().items() if tower.width not in OPENAI_WIDTHS]):
        raise WeightsError(
            f"{source}: the {odd[0]} tower is {getattr(towers, odd[0]).width} wide, which does not determine its "
            "number of heads: put its config.json (Hugging Face) or open_clip_config.json beside it"
        )
    if activation != "auto":
        log(f"activation {activation} in both towers (--activation)")
    elif unknown:
        log(
            f"{towers} (assumed, as in OpenAI's models: no configuration beside the file; for weights of LAION, "
            "DataComp or others add theirs or pass --activation gelu)"
        )
    return with_activation(towers, activation)


def check_vocabulary(config: ClipConfig, size: int, source: str) -> None:
    """Check that the vocabulary size is that of the weights.

    Raises:
        WeightsError: it differs.
    """
    if size != config.vocab_size:
        raise WeightsError(f"--vocab_size {size}: {source} was made for {config.vocab_size}")
