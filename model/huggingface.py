"""Converting weights from the names of Hugging Face's `CLIPModel` to OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.errors import WeightsError

_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # sic
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_model.final_layer_norm": "ln_final",
}
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
ANCHOR = "vision_model.embeddings.class_embedding"  # identifies this layout
PARTS = ("vision_model.", "text_model.", *_TRANSPOSED)  # prefixes of the names


def to_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under OpenAI's names: q, k and v in one matrix, projections transposed.

    Raises:
        WeightsError: a name that a `CLIPModel` doesn't have, or an attention without all of q, k and v.
    """
    renamed, parts = {}, {}
    for name, value in state.items():
        if name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T.contiguous()
            continue
        prefix = next((prefix for prefix in _NAMES if name.startswith(prefix)), None)
        if prefix is None:
            raise WeightsError(f"not the weights of a CLIPModel: unknown {name}")
        ours = _NAMES[prefix] + name.removeprefix(prefix)
        for theirs, inner in _IN_BLOCK.items():
            ours = ours.replace(f".{theirs}.", f".{inner}.")
        block, attention, part = ours.partition(".self_attn.")
        which, projection, kind = part.partition("_proj.")
        if attention and (not projection or which not in ("q", "k", "v")):
            raise WeightsError(f"not the weights of a CLIPModel: unknown {name}")
        if attention:
            parts.setdefault(f"{block}.attn.in_proj_{kind}", {})[which] = value
        else:
            renamed[ours] = value
    for name, qkv in parts.items():
        if qkv.keys() != {"q", "k", "v"}:
            raise WeightsError(f"not the weights of a CLIPModel: {name} has only {', '.join(sorted(qkv))}")
        if len({tuple(value.shape) for value in qkv.values()}) > 1 or not qkv["q"].dim():
            raise WeightsError(f"not the weights of a CLIPModel: {name} has q, k and v of different shapes")
        renamed[name] = torch.cat([qkv["q"], qkv["k"], qkv["v"]])
    return renamed
