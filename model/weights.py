"""Build models from weights: shapes come from the tensors, heads and activations from configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.clip import ClipConfig
from model.names import from_published, load_into
from model.positions import fit_positions, grid_of, resize_text_positions
from model.pretrained import Pretrained, read_clip
from model.rde import RDE
from model.towers import OPENAI_WIDTHS, Towers, assumed, from_record
from utils.checkpoints import load_checkpoint
from utils.errors import WeightsError


def read_config(
    state: Mapping[str, Tensor], source: str, *, towers: Towers | None = None, stride: int | None = None
) -> ClipConfig:
    """The configuration of the CLIP that a state dict (OpenAI's names) holds.

    Args:
        source: named in messages.
        towers: heads and activations; default: as OpenAI's.
        stride: defaults to the patch size.

    The grid is taken to be square, as in every pretrained CLIP.

    Raises:
        WeightsError: a tensor that fixes a size is missing or has the wrong number of dimensions; or `towers` describes
            another model.
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
        raise WeightsError(f"{source} is no CLIP vision transformer: {missing} is missing") from None
    except ValueError:
        raise WeightsError(f"{source} is no CLIP vision transformer: its tensors have other dimensions") from None
    found = Towers(
        assumed(image_width, _count_layers(state, "visual.transformer.resblocks.")),
        assumed(text_width, _count_layers(state, "transformer.resblocks.")),
    )
    towers = towers or found
    for name, said, has in zip(Towers._fields, towers, found, strict=True):
        if (said.width, said.layers) != (has.width, has.layers):
            raise WeightsError(
                f"{source}: the {name} tower has {has.layers} layers of width {has.width}, but its configuration says "
                f"{said.layers} of {said.width}; does that belong to another model?"
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


def build_model(
    pretrain_choice: str,
    *,
    image_size: tuple[int, int],
    stride: int,
    text_length: int,
    vocab_size: int,
    select_ratio: float,
    tse_bn: str,
    tse_head: str,
    tse_pool: str,
    precision: str,
    activation: str = "auto",
    log: Callable[[str], None] = lambda _: None,
) -> RDE:
    """An RDE model with pretrained towers and fresh TSE heads (drawn from torch's global generator).

    Args:
        activation: of both towers, one of `ACTIVATIONS`, or "auto" for what the weights come with.
        log: gets a line for everything that was read from a configuration, assumed, resized or skipped.

    Raises:
        WeightsError: the weights can't be read, have another vocabulary or patch size, or an unknown number of heads.
    """
    pretrained = read_clip(pretrain_choice)
    state = pretrained.state
    config = read_config(state, pretrain_choice, towers=pretrained.towers, stride=stride)
    for remark in pretrained.remarks:
        log(remark)
    towers = _decide(pretrained, Towers(config.image, config.text), activation, pretrain_choice, log)
    _check_vocabulary(config, vocab_size, pretrain_choice)
    if min(image_size) < config.patch:
        raise WeightsError(f"--img_size {image_size[0]} {image_size[1]}: smaller than a patch of {config.patch} pixels")
    grid = grid_of(image_size, config.patch, stride)
    positions = state["visual.positional_embedding"]
    state["visual.positional_embedding"] = fit_positions(positions, grid, pretrain_choice, wrapped=pretrained.wrapped)
    if state["visual.positional_embedding"] is positions:
        log(f"image positions already fit {grid[0]}×{grid[1]} patches, kept as they are")
    if text_length != config.text_length:
        state["positional_embedding"] = resize_text_positions(state["positional_embedding"], text_length)
        how = "interpolated" if text_length > config.text_length else "cut"
        log(f"text positions {how} from {config.text_length} to {text_length}")
    kind = {"tse_bn": tse_bn, "tse_head": tse_head, "tse_pool": tse_pool, "precision": precision}
    config = replace(config, image=towers.image, text=towers.text, grid=grid, text_length=text_length)
    model = RDE(config, select_ratio=select_ratio, **kind)
    load_into(model.clip, state, pretrain_choice)
    return model


def _decide(pretrained: Pretrained, towers: Towers, activation: str, source: str, log: Callable[[str], None]) -> Towers:
    """The towers to build, given those that are known or, failing that, assumed.

    Raises:
        WeightsError: the number of heads is unknown and the widths are not those of OpenAI's models.
    """
    unknown = pretrained.towers is None and not pretrained.known
    if unknown and (odd := [name for name, tower in towers._asdict().items() if tower.width not in OPENAI_WIDTHS]):
        raise WeightsError(
            f"{source}: the {odd[0]} tower is {getattr(towers, odd[0]).width} wide, which does not determine its "
            "number of heads: put its config.json (Hugging Face) or open_clip_config.json beside it"
        )
    if activation != "auto":
        log(f"activation {activation} in both towers (--activation)")
        return Towers(*(replace(tower, activation=activation) for tower in towers))
    if unknown:
        log(
            f"{towers} (assumed, as in OpenAI's models: no configuration beside the file; for weights of LAION, "
            "DataComp or others add theirs or pass --activation gelu)"
        )
    return towers


def _check_vocabulary(config: ClipConfig, wanted: int, source: str) -> None:
    if wanted != config.vocab_size:
        raise WeightsError(f"--vocab_size {wanted}: {source} was made for {config.vocab_size}")


def model_from_checkpoint(file: Path, options: Mapping[str, Any]) -> RDE:
    """The RDE model a checkpoint holds, ours or the authors'; all sizes but the grid come from its tensors.

    Heads and activations are those recorded in the checkpoint. Without a record (the authors' files and our older ones)
    they are what the code computed that wrote it: heads 64 wide and QuickGELU, unless the option `activation` differs.

    Args:
        options: of the run; read are `img_size`, `stride_size`, `text_length`, `vocab_size`, `activation`,
            `select_ratio`, `tse_head`, `tse_pool` and `precision`.

    Raises:
        WeightsError: a file that can't be read, names or shapes that are not an RDE model's, or another image size,
            text length or vocabulary.
    """
    content = load_checkpoint(file)
    published = content["model"]
    clip = {name.removeprefix("clip."): value for name, value in from_published(published, str(file)).items()}
    height, width = options["img_size"]
    towers = from_record(content["towers"], str(file)) if "towers" in content else None
    config = read_config(clip, str(file), towers=towers, stride=options["stride_size"])
    if towers is None and options["activation"] != "auto":
        kind = {"activation": options["activation"]}
        config = replace(config, image=replace(config.image, **kind), text=replace(config.text, **kind))
    grid = grid_of((height, width), config.patch, config.stride)
    positions = len(clip["visual.positional_embedding"]) - 1
    if grid[0] * grid[1] != positions:
        raise WeightsError(
            f"{file} has {positions} patches, but img_size {height} {width} at stride_size {config.stride} "
            f"gives {grid[0]}×{grid[1]}"
        )
    if options["text_length"] != config.text_length:
        raise WeightsError(f"--text_length {options['text_length']}: {file} was made for {config.text_length}")
    _check_vocabulary(config, options["vocab_size"], str(file))
    kind = {name: options[name] for name in ("select_ratio", "tse_head", "tse_pool", "precision")}
    model = RDE(replace(config, grid=grid), **kind)
    model.load_published(published, str(file))
    return model
