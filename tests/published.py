"""The published implementation's numbers (`tests/golden`) and the weights they were computed with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def weights(which: str) -> dict[str, torch.Tensor]:
    """The golden weights of "clip" or "rde", under the published names. All callers share the tensors."""
    return dict(_weights(which))


@cache
def _weights(which: str) -> dict[str, torch.Tensor]:
    """One normal draw per tensor in sorted name order, scaled by kind of weight; the seed is stored with the shapes."""
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
    return draw_weights(shapes[which], shapes["seeds"][which])


@cache
def irra_weights() -> dict[str, torch.Tensor]:
    """The golden weights of IRRA, drawn the same way. All callers share the tensors."""
    golden = json.loads((GOLDEN / "irra.json").read_text())
    return draw_weights(golden["irra"], golden["seed"])


def draw_weights(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Draw golden weights of these shapes."""
    rng = np.random.RandomState(seed)
    state = {}
    for name, shape in sorted(shapes.items()):
        v = rng.standard_normal(shape).astype(np.float32) if shape else np.float32(rng.standard_normal())
        norm = ".ln_" in name or name.startswith("ln_") or ".bns." in name
        if name.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            value = torch.from_numpy(1 + 0.1 * np.abs(v))
        elif name.endswith("running_mean"):
            value = torch.from_numpy(0.1 * v)
        elif norm and name.endswith("weight"):
            value = torch.from_numpy(1 + 0.1 * v)
        else:
            value = torch.from_numpy((0.02 if name.endswith("bias") else 0.05) * v)
        state[name] = value
    return state


def write_clip_config(file: Path) -> None:
    """Write the golden CLIP's towers as an open_clip configuration."""
    towers = {"vision_cfg": {"width": 64, "layers": 3}, "text_cfg": {"width": 64, "layers": 2, "heads": 1}}
    file.write_text(json.dumps({"quick_gelu": True, **towers}))


def under_huggingface_names(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIP under `CLIPModel`'s names, converted tensor by tensor."""
    state = {
        "vision_model.embeddings.class_embedding": ours["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": ours["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": ours["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(len(ours["visual.positional_embedding"]))[None],
        "text_model.embeddings.token_embedding.weight": ours["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": ours["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "visual_projection.weight": ours["visual.proj"].T.contiguous(),
        "text_projection.weight": ours["text_projection"].T.contiguous(),
        "logit_scale": torch.ones(()),
    }
    for kind in ("weight", "bias"):
        state[f"vision_model.pre_layrnorm.{kind}"] = ours[f"visual.ln_pre.{kind}"]
        state[f"vision_model.post_layernorm.{kind}"] = ours[f"visual.ln_post.{kind}"]
        state[f"text_model.final_layer_norm.{kind}"] = ours[f"ln_final.{kind}"]
        for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
            for n in range(
                sum(name.endswith("ln_1.bias") and name.startswith(f"{prefix}transformer") for name in ours)
            ):
                block, theirs = f"{prefix}transformer.resblocks.{n}", f"{tower}.encoder.layers.{n}"
                for part, value in zip("qkv", ours[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    state[f"{theirs}.self_attn.{part}_proj.{kind}"] = value.contiguous()
                state[f"{theirs}.self_attn.out_proj.{kind}"] = ours[f"{block}.attn.out_proj.{kind}"]
                state[f"{theirs}.mlp.fc1.{kind}"] = ours[f"{block}.mlp.c_fc.{kind}"]
                state[f"{theirs}.mlp.fc2.{kind}"] = ours[f"{block}.mlp.c_proj.{kind}"]
                state[f"{theirs}.layer_norm1.{kind}"] = ours[f"{block}.ln_1.{kind}"]
                state[f"{theirs}.layer_norm2.{kind}"] = ours[f"{block}.ln_2.{kind}"]
    return state


def numbers(name: str) -> dict[str, np.ndarray]:
    """The arrays of `golden/<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def case(name: str, number: int) -> dict[str, np.ndarray]:
    """The arrays of one case of `golden/<name>.npz`, without the case's prefix."""
    prefix = f"case{number}."
    return {key.removeprefix(prefix): value for key, value in numbers(name).items() if key.startswith(prefix)}
