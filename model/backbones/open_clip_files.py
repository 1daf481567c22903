"""open_clip's configurations and weights files: creating a model, and reading its weights and published metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from model.backbones.base import CLIP_MEAN, CLIP_STD, Log
from model.pretrained import read_content
from model.settings import ModelSettings
from model.unwrap import FINE_TUNED, extract_clip, find_clip, grouped
from utils.errors import OptionError, WeightsError

_CONFIG = "open_clip_config.json"
_UNUSED = ("logit_scale", "logit_bias")  # parameters of the contrastive loss
_ANCHORS = ("visual.conv1.weight", "visual.trunk.patch_embed.proj.weight")  # in open_clip's image towers and in timm's
# Options, besides the activation, that change a model's computation but not its tensors.
_FIXED = {
    "vision_cfg": (CLIPVisionCfg(), ("head_width", "pool_type", "act_kwargs", "norm_kwargs")),
    "text_cfg": (CLIPTextCfg(), ("heads", "no_causal_mask", "pool_type", "act_kwargs", "norm_kwargs")),
}

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of the three channels


class Weights(NamedTuple):
    """Content of a weights file of an open_clip model.

    Attributes:
        state: weights under open_clip's names, in float32.
        wrapped: whether it was part of a person re-ID model, so that positions may be for images of any shape.
        normalisation: for a run's model; None for others.
        remarks: remarks for the log.
    """

    state: dict[str, Tensor]
    wrapped: bool
    normalisation: Normalisation | None
    remarks: list[str]


def configuration(name: str) -> dict[str, Any]:
    """A copy of one of open_clip's configurations.

    Raises:
        OptionError: the name is unknown.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        close = get_close_matches(name, open_clip.list_models(), n=6, cutoff=0.4)
        hint = f", such as {', '.join(close)}" if close else ""
        raise OptionError(f"--backbone open_clip:{name}: give one of open_clip's models after the colon{hint}")
    return json.loads(json.dumps(config))


def native_size(name: str, settings: ModelSettings) -> tuple[int, int]:
    """The image size to create a model for; timm's towers are resized only after loading their weights."""
    config = configuration(name)["vision_cfg"]
    if "timm_model_name" not in config:
        return settings.img_size
    size = config.get("image_size", 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def create(name: str, settings: ModelSettings, size: tuple[int, int]) -> nn.Module:
    """A model with random weights, without the parameters of the contrastive loss."""
    config = configuration(name)
    if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise OptionError(f"--backbone open_clip:{name}: a captioner or another library's text tower is not supported")
    custom = config.pop("custom_text", False)
    config["vision_cfg"] |= {"image_size": size, "output_tokens": "timm_model_name" not in config["vision_cfg"]}
    config["vision_cfg"].pop("timm_model_pretrained", None)
    config["text_cfg"]["context_length"] = settings.text_length
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        config["text_cfg"].pop(key, None)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    for unused in _UNUSED:
        model._parameters.pop(unused, None)
    return model


def read_weights(name: str, file: Path) -> Weights:
    """The weights of the model `name` from a file of open_clip, of a larger model, or of a run of train.py.

    Raises:
        WeightsError: the file can't be read, has no such model or several, or is of a run with another backbone.
    """
    content, _ = read_content(file)
    options = content.get("options")
    backbone = options.get("backbone") if isinstance(options, dict) else content.get("backbone")
    if backbone not in (None, f"open_clip:{name}"):
        raise WeightsError(f"{file} was trained with --backbone {backbone}: pass that one")
    state, prefix = find_clip(content, file, _ANCHORS)
    state, others = extract_clip(state, prefix)
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    remarks = [f"not part of CLIP: {grouped(others)}"] if others else []
    return Weights(state, prefix.endswith(FINE_TUNED), recorded_normalisation(content, file), remarks)


def recorded_normalisation(content: Mapping[str, Any], file: Path) -> Normalisation | None:
    """Mean and standard deviation recorded in a run's checkpoint; None if there are none."""
    towers = content.get("towers")
    return _normalisation(towers.get("preprocessing") if isinstance(towers, dict) else None, file)


def _normalisation(content: object, file: Path) -> Normalisation | None:
    """Values of "mean" and "std" in a file; None if missing.

    Raises:
        WeightsError: they are not three numbers each.
    """
    if not isinstance(content, dict) or not {"mean", "std"} <= content.keys():
        return None
    for key, low in (("mean", -math.inf), ("std", 0.0)):
        values = content[key]
        valid = isinstance(values, list | tuple) and all(type(v) in (int, float) and low < v < math.inf for v in values)
        if not valid or len(values) != 3:
            raise WeightsError(f"{file}: {key} of the images' channels must be three numbers, found {values!r:.60}")
    return tuple(content["mean"]), tuple(content["std"])


def _read_config_beside(file: Path) -> dict[str, Any]:
    """The configuration published beside the weights; empty if there is none."""
    config = file.with_name(_CONFIG)
    try:
        content = json.loads(config.read_text(encoding="utf-8-sig")) if config.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{config}, beside the weights, can't be read as JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def check_config_beside(name: str, file: Path) -> None:
    """Check that the configuration beside the weights agrees with that of `name` where tensors don't determine it.

    Raises:
        WeightsError: they differ.
    """
    config, expected = _read_config_beside(file).get("model_cfg"), configuration(name)
    if not isinstance(config, dict):
        return
    if bool(config.get("quick_gelu")) != bool(expected.get("quick_gelu")):
        activation = "QuickGELU" if config.get("quick_gelu") else "GELU"
        raise WeightsError(f"{file} was trained with {activation} ({_CONFIG}), but open_clip:{name} has the other one")
    for part, (defaults, keys) in _FIXED.items():
        stated = config.get(part)
        for key in keys:
            value = expected[part].get(key, getattr(defaults, key))
            if isinstance(stated, dict) and stated.get(key, value) != value:
                raise WeightsError(
                    f"{file} was trained with {key} {stated[key]!r:.60} ({_CONFIG}, {part}), but open_clip:{name} has "
                    f"{value!r:.60}"
                )


def published_normalisation(name: str, file: Path, log: Log) -> Normalisation:
    """Mean and standard deviation from the file's configuration, else those that all releases of `name` share."""
    if normalisation := _normalisation(_read_config_beside(file).get("preprocess_cfg"), file.with_name(_CONFIG)):
        return normalisation
    releases = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    known = {
        (tuple(cfg.get("mean") or CLIP_MEAN), tuple(cfg.get("std") or CLIP_STD)) for cfg in releases if cfg is not None
    }
    mean, std = known.pop() if len(known) == 1 else (CLIP_MEAN, CLIP_STD)
    values = " ".join(f"{value:.3g}" for value in (*mean, *std))
    log(f"mean and deviation of images {values} (assumed, as in {name}'s releases: no {_CONFIG} beside the file)")
    return mean, std
