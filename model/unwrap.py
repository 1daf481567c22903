"""Finding a CLIP inside a training checkpoint or a larger model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model import huggingface
from utils.checkpoints import is_plain
from utils.errors import WeightsError, printable

_ANCHORS = ("visual.conv1.weight", huggingface.ANCHOR)  # identify a CLIP among other tensors
# Keys under which checkpoints store their model, and prefixes added by wrappers.
_COMMON_KEYS = ("", "model", "state_dict")
FINE_TUNED = "base_model."  # prefix in person re-ID models, whose positions fit their images
_COMMON_PREFIXES = ("", "module.", FINE_TUNED, f"module.{FINE_TUNED}")
# Prefixes in OpenAI's layout; some open_clip models put "text." before those of the text tower.
_PARTS = (
    "visual.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "text.",
)
# Tensors that are not weights: sizes in OpenAI's archives, position ids in Hugging Face's files.
_BUFFERS = ("input_resolution", "context_length", "vocab_size", "position_ids")


def find_clip(
    content: Mapping[str, Any], path: Path, anchors: Collection[str] = _ANCHORS
) -> tuple[dict[str, Tensor], str]:
    """The state dict that contains a CLIP, and the prefix of its names in it.

    Args:
        path: named in messages.
        anchors: tensor names, one of which every CLIP has.

    Raises:
        WeightsError: there is no CLIP, or more than one.
    """
    dicts = {"": content} | {str(key): value for key, value in content.items() if isinstance(value, dict)}
    states = {
        key: {k: v for k, v in values.items() if isinstance(k, str) and is_plain(v)} for key, values in dicts.items()
    }
    matches = [(key, prefix) for key, state in states.items() for prefix in _prefixes(state, anchors)]
    usual = [(key, prefix) for key, prefix in matches if key in _COMMON_KEYS and prefix in _COMMON_PREFIXES]
    if len(usual) == 1:
        matches = usual
    if not matches:
        raise WeightsError(f"{path} contains no CLIP vision transformer: no tensor is named {' or '.join(anchors)}")
    if len(matches) > 1:
        names = ", ".join("".join((key, key and ": ", prefix, "*")) for key, prefix in matches)
        raise WeightsError(f"{path} contains several CLIPs ({printable(names)[:200]}): keep only one of them")
    ((key, prefix),) = matches
    return states[key], prefix


def _prefixes(names: Iterable[str], anchors: Collection[str]) -> Iterator[str]:
    """The prefix of every anchor among the names."""
    for name in names:
        for anchor in anchors:
            prefix = name.removesuffix(anchor)
            if prefix != name and (not prefix or prefix.endswith(".")):
                yield prefix


def extract_clip(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """CLIP's weights without the prefix, and the names of other tensors."""
    parts = huggingface.PARTS if prefix + huggingface.ANCHOR in state else _PARTS
    clip, others = {}, []
    for full_name, value in state.items():
        name = full_name.removeprefix(prefix)
        if name.endswith(_BUFFERS):
            continue
        if full_name.startswith(prefix) and name.startswith(parts):
            clip[name] = value
        else:
            others.append(full_name)
    return clip, others


def grouped(names: Iterable[str]) -> str:
    """The modules that tensors belong to, with the number of tensors in each, for a message."""
    groups = Counter(name.removeprefix("module.").removeprefix("base_model.").split(".")[0] for name in names)
    modules = [printable(name)[:40] + (f" ({count} tensors)" if count > 1 else "") for name, count in groups.items()]
    return ", ".join(modules[:12]) + (f" and {len(modules) - 12} more" if len(modules) > 12 else "")
