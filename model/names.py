"""Names of weights in published files, and copying weights by name.

All published spellings are defined here; weights that are in no table keep their names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from utils.checkpoints import describe_mismatch
from utils.errors import WeightsError

# Weights of OpenAI's vision transformers.
OPENAI = re.compile(
    r"(visual\.)?(positional_embedding|transformer\.resblocks\.\d+\."
    r"(attn\.in_proj_(weight|bias)|(attn\.out_proj|ln_1|ln_2|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)))"
    r"|visual\.(class_embedding|proj|conv1\.weight|ln_(pre|post)\.(weight|bias))"
    r"|text_projection|token_embedding\.weight|ln_final\.(weight|bias)"
)
BACKBONE, PUBLISHED_BACKBONE = "backbone.", "base_model."
# Prefixes of the heads: ours → published.
_HEADS = {
    "heads.TSE.image.fc.": "visul_emb_layer.fc.",
    "heads.TSE.image.mlp.0.": "visul_emb_layer.mlp.layers.0.",
    "heads.TSE.image.mlp.1.": "visul_emb_layer.mlp.bns.0.",
    "heads.TSE.image.mlp.3.": "visul_emb_layer.mlp.layers.1.",
    "heads.TSE.text.fc.": "texual_emb_layer.linear.",
    "heads.TSE.text.mlp.0.": "texual_emb_layer.mlp.layers.0.",
    "heads.TSE.text.mlp.1.": "texual_emb_layer.mlp.bns.0.",
    "heads.TSE.text.mlp.3.": "texual_emb_layer.mlp.layers.1.",
}
# Parameters in published files that no forward pass uses.
_UNUSED = (
    "base_model.logit_scale",
    "visul_emb_layer.linear.",
    "visul_emb_layer.mlp.bns.1.",
    "texual_emb_layer.mlp.bns.1.",
)


def published_head_name(name: str) -> str:
    """The published name of a weight outside the backbone."""
    for ours, theirs in _HEADS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def without_wrapper(state: Mapping[str, Tensor], own: Collection[str] = ()) -> dict[str, Tensor]:
    """A published state dict, or one of ours, without DataParallel's prefix and without unused parameters.

    Args:
        own: names of the model's weights, which are always kept.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if name in own or not name.startswith(_UNUSED)}


def load_named(module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], source: str) -> None:
    """Copy weights after checking that all names and shapes agree.

    Args:
        names: the module's name of each weight to copy → its name in `state`.
        source: named in messages.

    Raises:
        WeightsError: weights are missing, unknown or of another shape; the message has their names in `state`.
    """
    expected = {names[name]: value for name, value in module.state_dict().items() if name in names}
    if mismatch := describe_mismatch(expected, state):
        raise WeightsError(f"{source} does not fit this model: {mismatch}")
    module.load_state_dict({name: state[theirs] for name, theirs in names.items()}, strict=False)
