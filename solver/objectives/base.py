"""The kinds of objectives: per-pair losses, losses of a batch's embeddings, and losses of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from solver.settings import OptimizerSettings
from utils.errors import OptionError


class AnyObjective(nn.Module):
    """Base of all objectives. Their parameters are trained, saved and restored with the model's.

    Attributes:
        Settings: a settings class (`utils.settings.settings`), or None.
        published: whether its parameters have their own names in checkpoints, as in published files.
        half_weights: whether its linear layers are float16 in `--precision fp16_weights`. Inputs remain float32.
        capturable: whether `--cuda_graphs` can capture it: shapes are fixed, and Python reads nothing from the GPU.
    """

    Settings: ClassVar[type | None] = None
    published: ClassVar[bool] = False
    half_weights: ClassVar[bool] = False
    capturable: ClassVar[bool] = True

    def __init__(self, settings: Any = None) -> None:
        super().__init__()
        self.settings = settings

    def learning_rate(self, parameter: str, optimizer: OptimizerSettings) -> float:  # noqa: ARG002
        """The learning rate of one of its parameters."""
        return optimizer.head_lr


class PairwiseObjective(AnyObjective):
    """A loss for every pair of a batch, from the similarities of one embedding.

    It is trained on each embedding that `--trained` names, and the correspondence scores pairs with the same
    `per_pair`. To add one: subclass, register it in `solver.settings.OBJECTIVES`, and name it in `--loss_names`.

    Attributes:
        reduction: "sum", the weighted sum of a batch's losses, or "mean", the sum over max(1, sum of weights).

    Raises:
        OptionError: `reduction` is neither.
    """

    reduction: ClassVar[Literal["sum", "mean"]] = "sum"

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        if self.reduction not in ("sum", "mean"):
            raise OptionError(f'{type(self).__name__}: reduction must be "sum" or "mean", not {self.reduction!r}')

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
        return weighted_mean(per_pair, weight) if self.reduction == "mean" else (weight * per_pair).sum()


class TwoDirections(PairwiseObjective):
    """A pairwise objective that treats image and text queries alike: subclasses implement only `one_direction`."""

    def per_pair(self, similarity: Tensor, pids: Tensor) -> Tensor:
        """See `PairwiseObjective.per_pair`."""
        positive = pids[:, None] == pids[None, :]
        return self.one_direction(similarity, positive) + self.one_direction(similarity.T, positive)

    def one_direction(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """(B, B) similarities and mask of same-identity pairs → (B,) losses with rows as queries."""
        raise NotImplementedError


class NamedEmbeddings(dict[str, Tensor]):
    """Embeddings by name; a missing one is a user error."""

    def __missing__(self, name: str) -> Tensor:
        raise OptionError(f"an objective needs the embedding {name}, and the model's --heads are {'+'.join(self)}")


@dataclass(frozen=True)
class EncodedBatch:
    """A global batch of B pairs.

    Attributes:
        image, text: (B, D) embeddings by name, not normalised.
        pids: (B,) identities of the images, 0 … P − 1.
        weight: (B,) weight of each pair.
        rows: (B, k) outputs of token objectives for each pair, by name.
    """

    image: NamedEmbeddings
    text: NamedEmbeddings
    pids: Tensor
    weight: Tensor
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def similarity(self, name: str) -> Tensor:
        """(B, B) cosines of an embedding, images in rows."""
        return cosine_similarity(self.image[name], self.text[name])

    def mean(self, per_pair: Tensor) -> Tensor:
        """(B,) losses → their weighted sum over max(1, sum of weights)."""
        return weighted_mean(per_pair, self.weight)


@dataclass(frozen=True)
class Sizes:
    """Sizes from which objectives create their parameters.

    Attributes:
        widths: width of each embedding.
        identities: P.
        features: D of the backbone's features.
        vocabulary: the tokenizer's vocabulary size.
        batch_size: pairs in a global batch.
    """

    widths: Mapping[str, int]
    identities: int
    features: int = 0
    vocabulary: int = 0
    batch_size: int = 0


class OtherObjective(AnyObjective):
    """Base of the objectives that aren't pairwise.

    Attributes:
        needs: names of the embeddings that it requires.
        scores: names of the arrays that `score` returns.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any, sizes: Sizes) -> None:
        super().__init__(settings)
        self.sizes = sizes

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:  # noqa: ARG002
        """(B,) scores for a correspondence, by the names in `scores`, without gradient."""
        return {}


class Objective(OtherObjective):
    """A loss of a whole batch's embeddings, such as an identity loss.

    To add one: subclass, register it in `solver.settings.OBJECTIVES`, and name it in `--loss_names`, as in `TAL+id`.
    """

    def forward(self, batch: EncodedBatch) -> Tensor:
        """The batch's loss, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class PairTokens:
    """The tokens of b pairs, a process's share of a batch or a part of it.

    Attributes:
        image, text: (b, L, D) float32 features in the joint space; those of masked captions if `masks_words`.
        labels: (b, L) original ids of masked words, 0 elsewhere; None unless `masks_words`.
    """

    image: Tensor
    text: Tensor
    labels: Tensor | None


class TokenObjective(OtherObjective):
    """A loss of tokens, such as masked language modelling.

    Tokens interact only within a pair, so every process computes rows for its own pairs, in parts if necessary; the
    rows of the whole batch are then reduced to the loss.

    Attributes:
        masks_words: whether the captions' words are masked (`datasets.masking`).
    """

    capturable = False
    masks_words: ClassVar[bool] = False

    def forward(self, tokens: PairTokens) -> Tensor:
        """(b, k) float32 rows from which the loss is computed; b may be 0."""
        raise NotImplementedError

    def reduce(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(B, k) rows of the whole batch and (B,) weights → its loss, a scalar."""
        raise NotImplementedError


def cosine_similarity(image: Tensor, text: Tensor) -> Tensor:
    """(B, D) and (C, D) features → (B, C) cosines."""
    return F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


def weighted_mean(per_pair: Tensor, weight: Tensor) -> Tensor:
    """(B,) losses and (B,) weights → their weighted sum over max(1, sum of weights)."""
    return (weight * per_pair).sum() / weight.sum().clamp_min(1)
