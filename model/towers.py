"""Number of attention heads and activation of a CLIP's towers, which its tensors don't determine.

They are read from the configuration beside the weights, Hugging Face's or open_clip's. OpenAI's models have heads of 64
channels and QuickGELU; most others have GELU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from model.backbones.transformer import ACTIVATIONS, HEAD_WIDTH, Tower
from utils.errors import WeightsError

OPENAI_WIDTHS = (512, 768, 1024)  # tower widths of OpenAI's vision transformers, with heads of 64 channels
_NAMES = {"quick_gelu": "QuickGELU", "gelu": "GELU"}
# Options of an open_clip tower that change its computation but not its tensors, with the supported value.
_OPEN_CLIP_FIXED = {"no_causal_mask": False, "act_kwargs": None, "norm_kwargs": None}


class Towers(NamedTuple):
    """Both towers of a CLIP."""

    image: Tower
    text: Tower

    def record(self) -> dict[str, dict[str, Any]]:
        """Convert to plain values for checkpoints and configurations."""
        return {name: asdict(tower) for name, tower in self._asdict().items()}

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {tower.heads} heads, {_NAMES[tower.activation]}" for name, tower in self._asdict().items()
        )


def assumed(width: int, layers: int) -> Tower:
    """A tower with heads of 64 channels and QuickGELU, like OpenAI's; the published code always assumes this."""
    return Tower(width, layers, max(1, width // HEAD_WIDTH), "quick_gelu")


def from_record(record: object, source: str) -> Towers:
    """Inverse of `Towers.record`.

    Raises:
        WeightsError: it is malformed.
    """
    names = {field.name for field in fields(Tower)}
    if not isinstance(record, Mapping) or record.keys() != set(Towers._fields):
        raise WeightsError(f"{source}: its towers must be {' and '.join(Towers._fields)}")
    for tower in record.values():
        if not isinstance(tower, Mapping) or tower.keys() != names:
            raise WeightsError(f"{source}: its towers must each have {', '.join(sorted(names))}")
    return Towers(**{name: _tower(source, **tower) for name, tower in record.items()})


def find_towers(weights: Path, *, huggingface: bool) -> tuple[Towers, Path] | None:
    """Both towers from the configuration beside a weights file, and the configuration's path.

    `NAME.json` beside `NAME.pt` takes precedence, then the configuration file of the weights' layout. Other JSON files
    are ignored.

    Raises:
        WeightsError: the configuration can't be read or isn't supported.
    """
    kinds = ("config.json", "open_clip_config.json") if huggingface else ("open_clip_config.json", "config.json")
    for file in (weights.with_suffix(".json"), *(weights.with_name(name) for name in kinds)):
        if file.is_file() and (towers := _read(file)):
            return towers, file
    return None


def _read(file: Path) -> Towers | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}, beside the weights, can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        return None
    config = content.get("model_cfg", content)
    if isinstance(config, dict) and "vision_cfg" in config:
        return _open_clip(config, file)
    if content.get("model_type") == "clip" or "vision_config" in content:
        return _huggingface(content, file)
    return None


def _huggingface(content: Mapping[str, Any], file: Path) -> Towers:
    """Towers of a `CLIPConfig`; missing values default to OpenAI's ViT-B."""
    towers = []
    for name, width, heads in (("vision", 768, 12), ("text", 512, 8)):
        older = content.get(f"{name}_config_dict")  # takes precedence, even if empty
        tower = _mapping(content.get(f"{name}_config") if older is None else older, file, f"{name}_config")
        if (eps := tower.get("layer_norm_eps", 1e-5)) != 1e-5:
            raise WeightsError(f"{file}: {name} layer_norm_eps {eps!r:.40} is not supported, only 1e-05")
        sizes = (tower.get("hidden_size", width), tower.get("num_hidden_layers", 12))
        heads = tower.get("num_attention_heads", heads)
        towers.append(_tower(f"{file}, {name}", *sizes, heads, tower.get("hidden_act", "quick_gelu")))
    return Towers(*towers)


def _open_clip(content: Mapping[str, Any], file: Path) -> Towers:
    """Towers of an open_clip model configuration."""
    towers = []
    for name, width, pool in (("vision", 768, "tok"), ("text", 512, "argmax")):
        tower = _mapping(content.get(f"{name}_cfg"), file, f"{name}_cfg")
        for key, only in (*_OPEN_CLIP_FIXED.items(), ("pool_type", pool)):
            if tower.get(key, only) != only:
                raise WeightsError(f"{file}: {name}_cfg {key} {tower[key]!r:.40} is not supported")
        width = tower.get("width", width)
        heads = tower.get("heads", 8)
        if name == "vision":
            head_width = tower.get("head_width", HEAD_WIDTH)
            divides = _positive(width) and _positive(head_width) and width % head_width == 0
            if not divides:
                raise WeightsError(
                    f"{file}: vision_cfg head_width {head_width!r:.40} does not divide its width {width!r:.40}"
                )
            heads = width // head_width
        activation = tower.get("act_layer", "quick_gelu" if content.get("quick_gelu", False) else "gelu")
        towers.append(_tower(f"{file}, {name}", width, tower.get("layers", 12), heads, activation))
    return Towers(*towers)


def _mapping(value: object, file: Path, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping | None):
        raise WeightsError(f"{file}: {key} must be an object, found {value!r:.60}")
    return value or {}


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


def _tower(where: str, width: Any, layers: Any, heads: Any, activation: Any) -> Tower:
    for what, value in (("width", width), ("layers", layers), ("heads", heads)):
        if not _positive(value):
            raise WeightsError(f"{where}: {what} must be a positive whole number, found {value!r:.40}")
    if width % heads:
        raise WeightsError(f"{where}: {heads} heads do not divide its width {width}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise WeightsError(f"{where}: activation {activation!r:.40} is not supported, only {', '.join(ACTIVATIONS)}")
    return Tower(width, layers, heads, activation)
