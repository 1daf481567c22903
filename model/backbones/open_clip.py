"""open_clip models: its own vision transformers, EVA02 and SigLIP, each with its original text tower.

Token selection reads one row of the last block's attention. SigLIP has no summary token; instead, the vector pooled by
a latent query precedes the patches, with the attention of that query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import get_clean_fn
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.base import CLIP_MEAN, CLIP_STD, Backbone, Log, Needed, Tokens
from model.backbones.open_clip_files import (
    Weights,
    check_config_beside,
    configuration,
    create,
    native_size,
    published_normalisation,
    read_weights,
    recorded_normalisation,
)
from model.backbones.open_clip_tokenizer import FILE, FileTokenizer
from model.names import load_named
from model.positions import fit_positions, resize_text_positions
from model.settings import BACKBONES, ModelSettings
from utils.errors import OptionError, WeightsError

CLIP_VOCABULARY = 49408


@BACKBONES.register("open_clip")
class OpenClip(Backbone):
    """The open_clip model that `--backbone open_clip:NAME` names.

    Args:
        name: name of open_clip's configuration.
        size: (height, width) of the images that the model is created for.
    """

    takes_variant = True

    def __init__(self, name: str, settings: ModelSettings, size: tuple[int, int]) -> None:
        super().__init__()
        self.model: Any = create(name, settings, size)
        self.length = settings.text_length
        _check(name, self)
        self.pooled_last = getattr(self.text, "pool_type", "argmax") == "last"
        self.width = configuration(name)["embed_dim"]
        self.text_tokens = settings.text_length - (1 if self.pooled_last else 2)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def text(self) -> Any:
        """The text tower; in older models its parts are attributes of the model itself."""
        return getattr(self.model, "text", self.model)

    @property
    def trunk(self) -> Any:
        """The image tower's timm transformer; None for open_clip's own."""
        return getattr(self.visual, "trunk", None)

    @property
    def pool(self) -> Any:
        """SigLIP's attention pooling; None for other models."""
        return getattr(self.trunk, "attn_pool", None)

    @classmethod
    def build(cls, settings: ModelSettings, own: Any, log: Log) -> OpenClip:
        """A model with pretrained weights; positions are resized for image size and text length.

        Raises:
            OptionError: no such configuration, or an unsupported one.
            WeightsError: the weights can't be read or are of another model, or a tokenizer is missing.
        """
        del own
        name, file = _variant(settings), Path(settings.pretrain_choice)
        if not file.is_file():
            raise WeightsError(f"--pretrain_choice {file}: --backbone open_clip needs a file of open_clip weights")
        weights = read_weights(name, file)
        for remark in weights.remarks:
            log(remark)
        model = cls(name, settings, native_size(name, settings))
        check_config_beside(name, file)
        model._load(weights, settings, str(file), log)
        model.mean, model.std = weights.normalisation or published_normalisation(name, file, log)
        model._find_tokenizer(name, [file])
        return model

    @classmethod
    def from_checkpoint(cls, settings: ModelSettings, own: Any, content: Mapping[str, Any], source: str) -> OpenClip:
        """The model of a run, to load its weights into."""
        del own
        name = _variant(settings)
        model = cls(name, settings, native_size(name, settings))
        model._resize(settings.img_size)
        model.mean, model.std = recorded_normalisation(content, Path(source)) or (CLIP_MEAN, CLIP_STD)
        model._find_tokenizer(name, [Path(source), Path(settings.pretrain_choice)])
        return model

    def _load(self, weights: Weights, settings: ModelSettings, source: str, log: Log) -> None:
        state, wrapped = weights.state, weights.wrapped
        if "positional_embedding" in state and self.text is not self.model:
            state = open_clip.model.convert_to_custom_text_state_dict(state)
        positions = "visual.positional_embedding"
        if self.trunk is None and positions in state:
            state[positions] = fit_positions(state[positions], self.visual.grid_size, source, wrapped=wrapped)
        text_positions = "positional_embedding" if self.text is self.model else "text.positional_embedding"
        if text_positions in state and (length := len(state[text_positions])) != self.length:
            state[text_positions] = resize_text_positions(state[text_positions], self.length)
            log(f"text positions {'interpolated' if self.length > length else 'cut'} from {length} to {self.length}")
        if wrapped:
            self._resize(settings.img_size)
        load_named(self, state, {name: self.published_name(name) for name in self.state_dict()}, source)
        self._resize(settings.img_size)
        self.pretrained = frozenset(self.state_dict())

    def _resize(self, size: tuple[int, int]) -> None:
        """Resize the image tower to images of (height, width); timm's towers resize their positions themselves."""
        if self.trunk is not None:
            self.trunk.set_input_size(img_size=size)
            self.grid = tuple(self.trunk.patch_embed.grid_size)
        else:
            self.grid = tuple(self.visual.grid_size)
        self.image_tokens = self.grid[0] * self.grid[1]

    def _find_tokenizer(self, name: str, beside: list[Path]) -> None:
        """Use CLIP's tokenizer for CLIP's vocabulary, else a tokenizer file, which is copied into runs."""
        if self.text.vocab_size == CLIP_VOCABULARY:
            return
        tokenizer = next((path for file in beside if (path := file.with_name(FILE)).is_file()), None)
        if tokenizer is None:
            raise WeightsError(
                f"{beside[0].with_name(FILE)} is missing: put {name}'s tokenizer file beside the weights"
            )
        config = configuration(name)["text_cfg"]
        clean = get_clean_fn(config.get("tokenizer_kwargs", {}).get("clean", "whitespace"))
        self.tokenizer, self.files = FileTokenizer(tokenizer, self.text.vocab_size, clean), (tokenizer,)

    def encode_image(self, images: Tensor, needed: Needed | None = None) -> Tokens:
        """See `Backbone.encode_image`: the summary, then the patches row by row."""
        del needed
        features, attention = self._image_tokens(images) if self.trunk is None else self._trunk_tokens(images)
        cls = torch.zeros(images.shape[0], 1, dtype=torch.long, device=images.device)
        return Tokens(cls, cls, torch.full_like(cls[:, 0], self.image_tokens), attention, features)

    def _image_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For open_clip's own transformer: (B, 1 + patches, D) features, (B, 1 + patches) attention."""
        block = self.visual.transformer.resblocks[-1]
        with _recorded(block.ln_1) as outputs:
            pooled, patches = self.visual(images)
        features = torch.cat([pooled[:, None], patches @ self.visual.proj.to(patches.dtype)], dim=1)
        x = _batch_first(outputs[0], self.visual.transformer)
        return features, _attention_from(torch.zeros_like(x[:, 0, 0], dtype=torch.long), x, block.attn)

    def _trunk_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For timm's transformers: (B, 1 + patches, D) features, (B, 1 + patches) attention."""
        trunk = self.trunk
        if self.pool is None:
            with _recorded(trunk.blocks[-1].attn.attn_drop) as outputs:
                x = trunk.forward_features(images)  # (B, 1 + patches, width)
            return self.visual.head(trunk.head(trunk.fc_norm(x))), outputs[0].detach().float()[:, :, 0].mean(dim=1)
        x = trunk.forward_features(images)  # (B, patches, width)
        pooled = trunk.head(trunk.fc_norm(self.pool(x)))
        alone = trunk.head(trunk.fc_norm(_pooled_alone(x, self.pool)))  # (B, patches, D)
        attention = F.pad(_latent_attention(x.detach(), self.pool), (1, 0))
        return self.visual.head(torch.cat([pooled[:, None], alone], dim=1)), attention

    def encode_text(self, ids: Tensor, needed: Needed | None = None) -> Tokens:
        """See `Backbone.encode_text`. For a tower that pools the last position, rows are padded to full length."""
        del needed
        text = self.text
        eos, words = ids.argmax(dim=1, keepdim=True), (ids != 0).sum(dim=1)
        if self.pooled_last:
            ids = ids.masked_fill(ids == self.tokenizer.words, self.tokenizer.eos)
            ids = F.pad(ids, (0, self.length - ids.shape[1]))
            summary = torch.full_like(eos, self.length - 1)
            hidden, words = torch.cat([eos, summary], dim=1), words - 1
        else:
            summary, hidden, words = eos, torch.cat([torch.zeros_like(eos), eos], dim=1), words - 2
        L = ids.shape[1]
        mask = None if text.attn_mask is None else text.attn_mask[:L, :L]
        block = text.transformer.resblocks[-1]
        with _recorded(block.ln_1) as outputs:
            x = text.transformer(text.token_embedding(ids) + text.positional_embedding[:L], attn_mask=mask)
        features = self._project(text.ln_final(x))  # (B, L, D)
        attention = _attention_from(summary[:, 0], _batch_first(outputs[0], text.transformer), block.attn, mask)
        beyond = torch.arange(L, device=ids.device) > eos  # padding, which a tower without a causal mask attends to
        return Tokens(summary, hidden, words.clamp_min(0), attention.masked_fill(beyond, 0.0), features)

    def _project(self, x: Tensor) -> Tensor:
        """(…, width) of the text tower → (…, D)."""
        projection = self.text.text_projection
        if isinstance(projection, nn.Linear):
            return projection(x)
        return x if projection is None else x @ projection.to(x.dtype)

    def pad_text(self, ids: Tensor, count: int) -> Tensor:
        """See `Backbone.pad_text`."""
        return ids if self.pooled_last else super().pad_text(ids, count)

    def published_name(self, name: str) -> str:
        """open_clip's name."""
        return name.removeprefix("model.")

    def towers(self) -> dict[str, dict[str, Any]]:
        """The normalisation of images."""
        return {"preprocessing": {"mean": list(self.mean), "std": list(self.std)}}

    def set_grad_checkpointing(self, enable: bool) -> None:
        """See `Backbone.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)


def _variant(settings: ModelSettings) -> str:
    return settings.backbone.partition(":")[2]


def _check(name: str, model: OpenClip) -> None:
    """Check that attention can be read from both towers, and that the pooling is supported.

    Raises:
        OptionError: the model isn't supported.
    """
    visual, trunk, text = model.visual, model.trunk, model.text
    tower = ""
    if trunk is None:
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", [None])
        plain = getattr(visual, "pool_type", "tok") == "tok" and getattr(visual, "attn_pool", None) is None
        if not isinstance(blocks[-1], ResidualAttentionBlock) or not plain or getattr(visual, "final_ln_after_pool", 0):
            tower = "image"
    elif hasattr(trunk, "blocks") and hasattr(getattr(trunk.blocks[-1], "attn", None), "attn_drop"):
        trunk.blocks[-1].attn.fused_attn = False  # so that the attention passes through a dropout module
        pooled = model.pool is not None and getattr(trunk, "num_prefix_tokens", 1) == 0
        if not pooled and (model.pool is not None or trunk.num_prefix_tokens != 1 or trunk.global_pool != "token"):
            tower = "image"
    else:
        tower = "image"
    last = text.transformer.resblocks[-1]
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", "argmax"))
    if (
        not isinstance(last, ResidualAttentionBlock)
        or pool not in ("argmax", "last")
        or (hasattr(text, "cls_emb") and (text.cls_emb is not None))
    ):
        tower = "text"
    if tower:
        raise OptionError(f"--backbone open_clip:{name}: the attention of this kind of {tower} tower can't be read")


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record a module's outputs within the context."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        yield outputs
    finally:
        handle.remove()


def _batch_first(x: Tensor, transformer: Any) -> Tensor:
    return x if getattr(transformer, "batch_first", True) else x.transpose(0, 1)


@torch.no_grad()
def _attention_from(query: Tensor, x: Tensor, attn: Any, mask: Tensor | None = None) -> Tensor:
    """(B,) positions and (B, L, width) inputs of `nn.MultiheadAttention` → (B, L) attention, mean over heads."""
    B, L, width = x.shape
    weight, bias = attn.in_proj_weight.to(x.dtype), attn.in_proj_bias.to(x.dtype)
    query_input = x.gather(1, query.view(B, 1, 1).expand(B, 1, width))  # (B, 1, width)
    q = F.linear(query_input, weight[:width], bias[:width]).view(B, 1, attn.num_heads, -1).transpose(1, 2)
    k = F.linear(x, weight[width : 2 * width], bias[width : 2 * width]).view(B, L, attn.num_heads, -1).transpose(1, 2)
    logits = (q @ k.transpose(2, 3)).squeeze(2).float() * k.shape[-1] ** -0.5  # (B, H, L)
    if mask is not None:
        logits = logits + mask[query].float()[:, None]
    return logits.softmax(dim=-1).mean(dim=1)


@torch.no_grad()
def _latent_attention(x: Tensor, pool: Any) -> Tensor:
    """(B, N, width) patches → (B, N) attention of the pooling's latent query, mean over heads."""
    B, N, _ = x.shape
    q = pool.q_norm(pool.q(pool.latent).view(1, pool.latent_len, pool.num_heads, -1).transpose(1, 2))
    k = pool.k_norm(pool.kv(x).view(B, N, 2, pool.num_heads, -1).permute(2, 0, 3, 1, 4)[0])  # (B, H, N, d)
    logits = (q @ k.transpose(2, 3))[:, :, 0].float() * k.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)


def _pooled_alone(x: Tensor, pool: Any) -> Tensor:
    """(B, N, width) patches → (B, N, width) results of pooling each patch alone."""
    value = pool.proj(pool.kv(x)[..., x.shape[-1] :])
    project: Callable[[Tensor], Tensor] = pool.mlp
    return value + project(pool.norm(value))
