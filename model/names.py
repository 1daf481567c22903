"""The names of weights in the published files, and the copying of weights by name.

Published spellings live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from utils.errors import WeightsError

# Our prefix → the published one. The order matters: the first match is taken.
_PUBLISHED = (
    ("clip.", "base_model."),
    ("image_tse.fc.", "visul_emb_layer.fc."),
    ("image_tse.mlp.0.", "visul_emb_layer.mlp.layers.0."),
    ("image_tse.mlp.1.", "visul_emb_layer.mlp.bns.0."),
    ("image_tse.mlp.3.", "visul_emb_layer.mlp.layers.1."),
    ("text_tse.fc.", "texual_emb_layer.linear."),
    ("text_tse.mlp.0.", "texual_emb_layer.mlp.layers.0."),
    ("text_tse.mlp.1.", "texual_emb_layer.mlp.bns.0."),
    ("text_tse.mlp.3.", "texual_emb_layer.mlp.layers.1."),
)
# Parameters of published files that no forward pass ever used.
_UNUSED = ("visul_emb_layer.linear.", "visul_emb_layer.mlp.bns.1.", "texual_emb_layer.mlp.bns.1.")


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the published names, so that the published code can load our checkpoints."""
    renamed = {}
    for name, value in state.items():
        ours, theirs = next(pair for pair in _PUBLISHED if name.startswith(pair[0]))
        renamed[theirs + name.removeprefix(ours)] = value
    return renamed


def from_published(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A published (or our own saved) state dict under our names, without what nothing uses.

    Args:
        source: named in messages.

    Raises:
        WeightsError: a name that is none of an RDE model's.
    """
    renamed, unknown = {}, []
    for full_name, value in state.items():
        name = full_name.removeprefix("module.")
        if name.startswith(_UNUSED) or name == "base_model.logit_scale":
            continue
        pair = next((pair for pair in _PUBLISHED if name.startswith(pair[1])), None)
        if pair is None:
            unknown.append(full_name)
        else:
            renamed[pair[0] + name.removeprefix(pair[1])] = value
    if unknown:
        raise WeightsError(f"{source} is not an RDE model: unknown {_some(unknown)}")
    return renamed


def _some(names: list[str], limit: int = 8) -> str:
    """The first few of a list of names, for a message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights only after the names and every shape agree.

    Raises:
        WeightsError: lists what is missing, unknown or of another shape.
    """
    own = module.state_dict()
    complaints = []
    if missing := sorted(own.keys() - state.keys()):
        complaints.append(f"missing {_some(missing)}")
    if unknown := sorted(state.keys() - own.keys()):
        complaints.append(f"unknown {_some(unknown)}")
    wrong = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    if wrong:
        complaints.append(f"of another shape {_some(sorted(wrong))}")
    if complaints:
        raise WeightsError(f"{source} does not fit this model: {'; '.join(complaints)}")
    module.load_state_dict(dict(state))
