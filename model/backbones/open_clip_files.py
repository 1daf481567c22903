"""Configurations and files of open_clip's models: creating one, and reading what is published with its weights."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor, nn

from model.backbones.base import CLIP_MEAN, CLIP_STD, Log
from model.pretrained import read_content
from model.settings import ModelSettings
from utils.errors import OptionError, WeightsError

_BESIDE = "open_clip_config.json"
_UNUSED = ("logit_scale", "logit_bias")  # of the contrastive loss


def configuration(name: str) -> dict[str, Any]:
    """A configuration of open_clip's, a copy.

    Raises:
        OptionError: there is none of this name.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        close = get_close_matches(name, open_clip.list_models(), n=6, cutoff=0.4)
        hint = f", as {', '.join(close)}" if close else ""
        raise OptionError(f"--backbone open_clip:{name}: give one of open_clip's models after the colon{hint}")
    return json.loads(json.dumps(config))


def native_size(name: str, settings: ModelSettings) -> tuple[int, int]:
    """The image size to create a model with: timm's towers are resized when their weights are in place."""
    config = configuration(name)["vision_cfg"]
    if "timm_model_name" not in config:
        return settings.img_size
    size = config.get("image_size", 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def create(name: str, settings: ModelSettings, size: tuple[int, int]) -> nn.Module:
    """A model with random weights, without what only the contrastive loss needs."""
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


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of open_clip's, of its training or of its releases, in float32."""
    content, _ = read_content(file)
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    state = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return {name: value for name, value in state.items() if name not in _UNUSED}


def _beside(file: Path) -> dict[str, Any]:
    """The configuration that open_clip publishes with its weights; empty if there is none."""
    config = file.with_name(_BESIDE)
    try:
        content = json.loads(config.read_text(encoding="utf-8-sig")) if config.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{config}, beside the weights, can't be read as JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def check_beside(name: str, file: Path) -> None:
    """QuickGELU and GELU have the same tensors: what the weights' own configuration says must be what the name says.

    Raises:
        WeightsError: it is not.
    """
    config = _beside(file).get("model_cfg")
    if isinstance(config, dict) and bool(config.get("quick_gelu")) != bool(configuration(name).get("quick_gelu")):
        activation = "QuickGELU" if config.get("quick_gelu") else "GELU"
        raise WeightsError(f"{file} was trained with {activation} ({_BESIDE}), and open_clip:{name} has the other one")


def normalisation(name: str, file: Path, log: Log) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels: of the file's own configuration, else those that all its releases share."""
    found = _beside(file).get("preprocess_cfg")
    if isinstance(found, dict) and {"mean", "std"} <= found.keys():
        return tuple(found["mean"]), tuple(found["std"])
    releases = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    known = {
        (tuple(cfg.get("mean") or CLIP_MEAN), tuple(cfg.get("std") or CLIP_STD)) for cfg in releases if cfg is not None
    }
    mean, std = known.pop() if len(known) == 1 else (CLIP_MEAN, CLIP_STD)
    shown = " ".join(f"{value:.3g}" for value in (*mean, *std))
    log(f"mean and deviation of images {shown} (assumed, as {name}'s releases have: no {_BESIDE} beside the file)")
    return mean, std
