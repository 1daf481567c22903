"""CLIP: both towers of OpenAI's vision transformers, with the names of their state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, Log, Needed, Tokens
from model.backbones.clip_config import ClipConfig, check_vocabulary, decide_towers, read_config, with_activation
from model.backbones.transformer import Select, Transformer
from model.names import OPENAI, load_named, without_wrapper
from model.positions import fit_positions, grid_of, resize_text_positions
from model.pretrained import read_clip
from model.settings import BACKBONES, ClipSettings, ModelSettings
from model.towers import Towers, from_record
from utils.errors import WeightsError
from utils.layers import LayerNorm


class VisionTransformer(nn.Module):
    """The image tower."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.image.width
        tokens = config.grid[0] * config.grid[1] + 1
        self.conv1 = nn.Conv2d(3, width, kernel_size=config.patch, stride=config.stride, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(config.image, causal=False)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, config.shared_width))

    def forward(self, images: Tensor, select: Select | None = None) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised images → (B, 1 + patches, D) features, (B, 1 + patches) attention from [CLS].

        With `select`, the features of all other tokens are meaningless.
        """
        B = images.shape[0]
        patches = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, patches, width)
        cls = self.class_embedding.to(patches.dtype).expand(B, 1, -1)
        x = torch.cat([cls, patches], dim=1) + self.positional_embedding.to(patches.dtype)  # (B, 1 + patches, width)
        x, attention = self.transformer(self.ln_pre(x), torch.zeros(B, dtype=torch.long, device=x.device), select)
        return self.project(self.ln_post(x)), attention

    def project(self, x: Tensor) -> Tensor:
        """(…, width) → (…, D), into the joint space."""
        return x @ self.proj.to(x.dtype)


@BACKBONES.register("clip")
class Clip(Backbone):
    """Both towers. Token id 0 is padding; EOS has the highest id of a caption."""

    Settings = ClipSettings
    half_weights = True

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.text.width
        self.config = config
        self.width, self.grid = config.shared_width, config.grid
        self.image_tokens, self.text_tokens = config.grid[0] * config.grid[1], config.text_length - 2
        self.visual = VisionTransformer(config)
        self.transformer = Transformer(config.text, causal=True)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.text_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.shared_width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @classmethod
    def build(cls, settings: ModelSettings, own: ClipSettings, log: Log) -> Clip:
        """A CLIP with pretrained weights; positions are resized for image size and text length.

        Raises:
            WeightsError: the weights can't be read, have another vocabulary or patch size, or an unknown number of
                attention heads.
        """
        source, size = settings.pretrain_choice, settings.img_size
        pretrained = read_clip(source)
        state = pretrained.state
        config = read_config(state, source, towers=pretrained.towers, stride=own.stride_size)
        for remark in pretrained.remarks:
            log(remark)
        towers = decide_towers(pretrained, Towers(config.image, config.text), own.activation, source, log)
        check_vocabulary(config, own.vocab_size, source)
        if min(size) < config.patch:
            raise WeightsError(f"--img_size {size[0]} {size[1]}: smaller than a patch of {config.patch} pixels")
        grid = grid_of(size, config.patch, own.stride_size)
        positions = state["visual.positional_embedding"]
        state["visual.positional_embedding"] = fit_positions(positions, grid, source, wrapped=pretrained.wrapped)
        if state["visual.positional_embedding"] is positions:
            log(f"image positions already match {grid[0]}×{grid[1]} patches, kept unchanged")
        if settings.text_length != config.text_length:
            state["positional_embedding"] = resize_text_positions(state["positional_embedding"], settings.text_length)
            action = "interpolated" if settings.text_length > config.text_length else "cut"
            log(f"text positions {action} from {config.text_length} to {settings.text_length}")
        model = cls(replace(config, image=towers.image, text=towers.text, grid=grid, text_length=settings.text_length))
        model.load_openai(state, source, log)
        return model

    def load_openai(self, state: Mapping[str, Tensor], source: str, log: Log = lambda _: None) -> None:
        """Load pretrained weights under OpenAI's names; layers that CLIP lacks keep their initialisation.

        Raises:
            WeightsError: a weight of CLIP is missing, another one is unknown, or a shape differs.
        """
        names = {name: self.published_name(name) for name in self.state_dict()}
        added = [name for name, theirs in names.items() if theirs not in state and not OPENAI.fullmatch(theirs)]
        if added:
            log(f"no pretrained weights, trained from scratch: {', '.join(added)}")
        names = {name: theirs for name, theirs in names.items() if name not in added}
        load_named(self, state, names, source)
        self.pretrained = frozenset(names)

    @classmethod
    def from_checkpoint(
        cls, settings: ModelSettings, own: ClipSettings, content: Mapping[str, Any], source: str
    ) -> Clip:
        """A CLIP to load a checkpoint's weights into, ours or the authors', with sizes from its tensors.

        Attention heads and activations are read from the checkpoint. If it doesn't record them (the authors' files and
        our older ones), they are those of the code that wrote it: 64 channels per head and QuickGELU, or `activation`.

        Raises:
            WeightsError: it has no CLIP, or one for another image size, text length or vocabulary.
        """
        state = without_wrapper(content["model"])
        clip = {name.removeprefix("base_model."): v for name, v in state.items() if name.startswith("base_model.")}
        height, width = settings.img_size
        towers = from_record(content["towers"], source) if "towers" in content else None
        config = read_config(clip, source, towers=towers, stride=own.stride_size)
        if towers is None:
            towers = with_activation(Towers(config.image, config.text), own.activation)
        grid = grid_of((height, width), config.patch, config.stride)
        positions = len(clip["visual.positional_embedding"]) - 1
        if grid[0] * grid[1] != positions:
            raise WeightsError(
                f"{source} has {positions} patches, but img_size {height} {width} at stride_size {config.stride} "
                f"gives {grid[0]}×{grid[1]}"
            )
        if settings.text_length != config.text_length:
            raise WeightsError(f"--text_length {settings.text_length}: {source} was made for {config.text_length}")
        check_vocabulary(config, own.vocab_size, source)
        return cls(replace(config, image=towers.image, text=towers.text, grid=grid))

    def encode_image(self, images: Tensor, needed: Needed | None = None) -> Tokens:
        """(B, 3, H, W) normalised images → their tokens: [CLS], then the patches row by row."""
        cls = torch.zeros(images.shape[0], 1, dtype=torch.long, device=images.device)
        patches = torch.full_like(cls[:, 0], self.image_tokens)
        tokens = Tokens(summary=cls, hidden=cls, selectable=patches)
        features, attention = self.visual(images, _select(tokens, needed))
        return replace(tokens, attention=attention, features=features)

    def encode_text(self, ids: Tensor, needed: Needed | None = None) -> Tokens:
        """(B, L) ids, L ≤ text_length → their tokens.

        Trimming padding doesn't change the result: no token attends to later ones, and padding is selected, earliest
        first, only if a caption has too few words.
        """
        L = ids.shape[1]
        eos = ids.argmax(dim=1, keepdim=True)  # (B, 1)
        words = ((ids != 0).sum(dim=1) - 2).clamp_min(0)  # (B,)
        tokens = Tokens(summary=eos, hidden=torch.cat([torch.zeros_like(eos), eos], dim=1), selectable=words)
        x = self.token_embedding(ids) + self.positional_embedding[:L]  # (B, L, width)
        x = x.to(self.text_projection.dtype)
        x, attention = self.transformer(x, eos.squeeze(1), _select(tokens, needed))
        return replace(tokens, attention=attention, features=self.project(self.ln_final(x)))

    def project(self, x: Tensor) -> Tensor:
        """(…, width) of the text tower → (…, D), into the joint space."""
        return x @ self.text_projection.to(x.dtype)

    def published_name(self, name: str) -> str:
        """OpenAI's name; there, the in-projection's weight and bias belong to the attention module."""
        return name.replace(".attn.in_proj.", ".attn.in_proj_")

    def towers(self) -> dict[str, dict[str, Any]]:
        """Heads and activation of both towers."""
        return Towers(self.config.image, self.config.text).record()

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Trade time for memory in both towers: same results, a third more arithmetic."""
        self.visual.transformer.grad_checkpointing = self.transformer.grad_checkpointing = enable

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks, fusing the operations between matrix products; takes a minute at the first batch.

        The blocks of a tower share compiled code; the last one, which returns attention, isn't compiled. Weight names
        don't change.
        """
        for tower in (self.visual.transformer, self.transformer):
            for block in tower.resblocks[:-1]:
                block.compile(backend=backend, fullgraph=True)


def _select(tokens: Tokens, needed: Needed | None) -> Select | None:
    """Turn `needed` into a function of the last block's attention."""
    return needed and (lambda attention: needed(replace(tokens, attention=attention)))
