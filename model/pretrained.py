"""Pretrained CLIPs: built in, downloaded by name, or read from a file in any published format."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from model import huggingface
from model.towers import Towers, find_towers, from_record
from model.unwrap import FINE_TUNED, extract_clip, find_clip, grouped
from utils.checkpoints import load_tensors, refuse_zip_bomb, safetensors_facts
from utils.download import fetch
from utils.errors import WeightsError, brief

# Replaces the full token embedding: the rows of the ids that occur in the built-in data set.
_ROWS, _ROW_IDS = "token_embedding.rows", "token_embedding.row_ids"

# OpenAI's vision transformers, with the SHA-256 from their URLs.
OPENAI_URL = "https://openaipublic.azureedge.net/clip/models"
OPENAI = {
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
}
CACHE = Path.home() / ".cache" / "clip"  # as in OpenAI's code
BUILT_IN = {"tiny": Path(__file__).parent / "tiny_clip.safetensors"}


class Pretrained(NamedTuple):
    """A pretrained CLIP.

    Attributes:
        state: its weights under OpenAI's names, in float32.
        towers: from the configuration beside the file, or recorded in it; None if neither exists.
        known: whether the towers are known anyway, as for OpenAI's models and those of `tools.pretrain_tiny`.
        wrapped: whether it was part of a person re-ID model, so that positions may be for images of any shape.
        remarks: remarks for the log.
    """

    state: dict[str, Tensor]
    towers: Towers | None
    known: bool
    wrapped: bool
    remarks: list[str]


def read_clip(pretrain_choice: str) -> Pretrained:
    """Read a pretrained CLIP, stand-alone or inside a larger model.

    Args:
        pretrain_choice: "tiny", a name from `OPENAI` (downloaded once), or a file: OpenAI's TorchScript archive, or
            tensors (torch or safetensors) with OpenAI's names or those of Hugging Face's `CLIPModel`, also as part of
            another model or of a training checkpoint.

    Raises:
        WeightsError: no such file, no CLIP in it, or several.
        DownloadError: the download failed.
    """
    path = _find(pretrain_choice)
    content, archived = read_content(path)
    state, prefix = find_clip(content, path)
    known = archived or prefix + _ROWS in state  # OpenAI's archives and the output of tools.pretrain_tiny
    towers, remarks = None, []
    if "towers" in content:
        towers = from_record(content["towers"], str(path))
        remarks.append(f"{towers} (recorded in the file)")
    elif not known and (found := find_towers(path, huggingface=prefix + huggingface.ANCHOR in state)):
        towers, config = found
        remarks.append(f"{towers} (from {config.name})")
    state, others = extract_clip(state, prefix)
    if others:
        remarks.append(f"not part of CLIP: {grouped(others)}")
    if huggingface.ANCHOR in state:
        state = huggingface.to_openai(state)
    state = {
        name.removeprefix("text."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    return Pretrained(_expand_rows(state), towers, known, prefix.endswith(FINE_TUNED), remarks)


def read_content(path: Path) -> tuple[dict[str, Any], bool]:
    """A file's content in any format, and whether it is a TorchScript archive like OpenAI's.

    Raises:
        WeightsError: it can't be read, or isn't a dict.
    """
    try:
        refuse_zip_bomb(path)
        if path.suffix == ".safetensors":
            return {"model": load_file(path), **safetensors_facts(path)}, False
        code = _torchscript(path)
        if any(b"__setstate__" in text for text in code):  # the only code that would run on loading
            raise ValueError("the archive contains code that CLIP's archives do not have")
        if code:
            with warnings.catch_warnings():  # deprecated, but OpenAI's files have this format
                warnings.simplefilter("ignore")
                return dict(torch.jit.load(path, map_location="cpu").state_dict()), True
        content = load_tensors(path)
    except WeightsError:
        raise
    except Exception as error:  # safetensors, torch, zipfile and pickle raise many types
        raise WeightsError(f"{path} can't be read as weights: {brief(error)}") from None
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path} is not a CLIP checkpoint: expected a dict of tensors, found {type(content).__name__}"
        )
    return content, False


def _find(pretrain_choice: str) -> Path:
    if pretrain_choice in BUILT_IN:
        return BUILT_IN[pretrain_choice]
    if pretrain_choice in OPENAI:
        sha256 = OPENAI[pretrain_choice]
        name = pretrain_choice.replace("/", "-") + ".pt"
        return fetch(f"{OPENAI_URL}/{sha256}/{name}", sha256, CACHE / name)
    if Path(pretrain_choice).is_dir():
        weights = (".safetensors", ".bin", ".pt", ".pth")
        files = sorted(file for file in Path(pretrain_choice).iterdir() if file.suffix in weights)
        example = f", such as {files[0]}" if files else ""
        raise WeightsError(f"--pretrain_choice {pretrain_choice} is a folder: pass the weights file in it{example}")
    if not Path(pretrain_choice).is_file():
        raise WeightsError(
            f"--pretrain_choice {pretrain_choice}: no such file; give a file of CLIP weights "
            f"or one of {', '.join((*OPENAI, *BUILT_IN))}"
        )
    return Path(pretrain_choice)


def _torchscript(path: Path) -> list[bytes]:
    """The code files of a TorchScript archive, such as OpenAI's; [] for any other file."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist() if "/code/" in name]


def _expand_rows(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Expand the compact form of the built-in weights; words that don't occur get small, fixed random rows."""
    if _ROWS in state:
        rows, ids = state.pop(_ROWS), state.pop(_ROW_IDS, None)
        if ids is None:
            raise WeightsError(f"no CLIP state dict: {_ROWS} without {_ROW_IDS}")
        generator = torch.Generator().manual_seed(0)
        embedding = 0.02 * torch.randn(int(ids[-1]) + 1, rows.shape[1], generator=generator)
        embedding[ids] = rows
        state["token_embedding.weight"] = embedding
    return state


def compact_rows(state: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """The compact form: only the rows `ids` (sorted, the highest last) of the token embedding."""
    compact = {name: value for name, value in state.items() if name != "token_embedding.weight"}
    return compact | {_ROWS: state["token_embedding.weight"][ids].contiguous(), _ROW_IDS: ids}
