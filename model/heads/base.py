"""The interface of a head."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from model.backbones.base import Tokens


class Head(nn.Module):
    """Turns tokens into one embedding. Each modality has its own instance and parameters.

    To add one: write a class in its own file, decorated with `@HEADS.register("NAME")`, with `forward`; then
    `--heads BGE+TSE+NAME` trains it and ranks by it.

    Args:
        width: D of the features.
        tokens: number of selectable tokens in an image or in a caption of full length.
        settings: its `Settings`, None if it has none.

    Attributes:
        Settings: a dataclass declared with `utils.settings.settings`, if it has flags.
        width: the embedding's width; D unless a subclass sets another.
        half_weights: whether it computes in the features' dtype, with float16 linear layers in `--precision
            fp16_weights`; else weights and inputs are float32.
        selects: number of tokens that `forward` reads besides the summary; shorter captions are padded to it.
    """

    Settings: ClassVar[type | None] = None
    half_weights: ClassVar[bool] = False
    selects: int = 0

    def __init_subclass__(cls, **arguments: Any) -> None:
        """A subclass that overrides `forward` reads all tokens, unless it also overrides `reads`."""
        super().__init_subclass__(**arguments)
        if "forward" in vars(cls) and "reads" not in vars(cls):
            cls.reads = Head.reads

    def __init__(self, width: int, tokens: int, settings: Any = None) -> None:  # noqa: ARG002
        super().__init__()
        self.width = width

    def reads(self, tokens: Tokens) -> Tensor | None:  # noqa: ARG002
        """Tokens without features → (B, k) positions of the tokens that `forward` reads; None for all.

        The last block's MLP is computed only for tokens that some head reads.
        """
        return None

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens → (B, width) float32, not normalised."""
        raise NotImplementedError
