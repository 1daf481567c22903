"""The two kinds of objectives: those that give every pair a loss, and all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import OptionError


class PairwiseObjective:
    """A loss for every pair of a batch, from the similarities of one embedding.

    It is trained on each embedding that `--trained` names, and the correspondence scores pairs with the same
    `per_pair`. To add one: subclass, register it in `solver.settings.OBJECTIVES`, and name it in `--loss_names`.

    Attributes:
        Settings: a settings class (`utils.settings.settings`), or None.
        reduction: how a batch's losses become one: their sum over the pairs that count, or the mean over those.
    """

    Settings: ClassVar[type | None] = None
    reduction: ClassVar[Literal["sum", "mean"]] = "sum"

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    def per_pair(self, similarity: Tensor, pids: Tensor) -> Tensor:
        """The loss of every pair.

        Args:
            similarity: (B, B) cosines, images in rows, captions in columns.
            pids: (B,) identities; a caption counts as a positive of every image of its identity.

        Returns:
            (B,): pair i's loss as an image query (row i) plus its loss as a text query (column i).
        """
        raise NotImplementedError

    def reduce(self, per_pair: Tensor, weight: Tensor) -> Tensor:
        """(B,) losses and (B,) weights l̂ → the batch's loss; 0 when no pair counts."""
        total = (weight * per_pair).sum()
        return total / weight.sum().clamp_min(1) if self.reduction == "mean" else total


class TwoDirections(PairwiseObjective):
    """A pairwise objective that treats image and text queries alike: only `one_direction` is to be written."""

    def per_pair(self, similarity: Tensor, pids: Tensor) -> Tensor:
        """See `PairwiseObjective.per_pair`."""
        positive = pids[:, None] == pids[None, :]
        return self.one_direction(similarity, positive) + self.one_direction(similarity.T, positive)

    def one_direction(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """(B, B) similarities and which of them are of one identity → (B,) losses of the rows' queries."""
        raise NotImplementedError


class NamedEmbeddings(dict[str, Tensor]):
    """Embeddings by name; asking for one that the model lacks is a mistake of the user's."""

    def __missing__(self, name: str) -> Tensor:
        raise OptionError(f"an objective needs the embedding {name}, and the model's --heads are {'+'.join(self)}")


@dataclass(frozen=True)
class EncodedBatch:
    """A global batch of B pairs.

    Attributes:
        image, text: by name, (B, D) embeddings, not normalised.
        pids: (B,) identities of the images, 0 … P − 1.
        weight: (B,) how much each pair counts.
    """

    image: NamedEmbeddings
    text: NamedEmbeddings
    pids: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Sizes:
    """What an objective with parameters must know to make them: each embedding's width, the number P of identities."""

    widths: Mapping[str, int]
    identities: int


class Objective(nn.Module):
    """A loss of a whole batch: an identity loss, say. Its parameters are trained, saved and resumed with the model's.

    To add one: subclass, register it in `solver.settings.OBJECTIVES`, and name it in `--loss_names`, as in `TAL+id`.

    Attributes:
        Settings: a settings class (`utils.settings.settings`), or None.
    """

    Settings: ClassVar[type | None] = None

    def __init__(self, settings: Any, sizes: Sizes) -> None:
        super().__init__()
        self.settings, self.sizes = settings, sizes

    def learning_rate(self, head_lr: float) -> float:
        """The rate of its parameters, given `--head_lr`."""
        return head_lr

    def forward(self, batch: EncodedBatch) -> Tensor:
        """The batch's loss, a scalar."""
        raise NotImplementedError


def cosine_similarity(image: Tensor, text: Tensor) -> Tensor:
    """(B, D) and (C, D) features → (B, C) cosines."""
    return F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
