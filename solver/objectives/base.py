"""The kinds of objectives: those that give every pair a loss, those of a batch's embeddings, those of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from solver.settings import OptimizerSettings
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
        rows: by name, (B, k) what objectives of tokens have computed for each pair.
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
        """(B,) losses → their mean over the pairs that count, by weight; 0 when none does."""
        return (self.weight * per_pair).sum() / self.weight.sum().clamp_min(1)


@dataclass(frozen=True)
class Sizes:
    """What an objective with parameters must know to make them.

    Attributes:
        widths: of each embedding.
        identities: P.
        features: D of the backbone's features.
        vocabulary: of the tokenizer.
        batch_size: pairs in a whole batch.
    """

    widths: Mapping[str, int]
    identities: int
    features: int = 0
    vocabulary: int = 0
    batch_size: int = 0


class _ModuleObjective(nn.Module):
    """What objectives with parameters have in common. The parameters are trained, saved and resumed with the model's.

    Attributes:
        Settings: a settings class (`utils.settings.settings`), or None.
        published: its parameters keep their own names in checkpoints, as in published files.
        half_weights: whether its linear layers are float16 in `--precision fp16_weights`. It gets float32 all the same.
        needs: names of the embeddings that it can't do without.
        scores: names of the arrays that `score` gives.
    """

    Settings: ClassVar[type | None] = None
    published: ClassVar[bool] = False
    half_weights: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any, sizes: Sizes) -> None:
        super().__init__()
        self.settings, self.sizes = settings, sizes

    def learning_rate(self, parameter: str, optimizer: OptimizerSettings) -> float:  # noqa: ARG002
        """The rate of one of its parameters."""
        return optimizer.head_lr

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:  # noqa: ARG002
        """By the names in `scores`, (B,) numbers by which a correspondence judges the pairs; without gradient."""
        return {}


class Objective(_ModuleObjective):
    """A loss of a whole batch's embeddings: an identity loss, say.

    To add one: subclass, register it in `solver.settings.OBJECTIVES`, and name it in `--loss_names`, as in `TAL+id`.
    """

    def forward(self, batch: EncodedBatch) -> Tensor:
        """The batch's loss, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class PairTokens:
    """The tokens of b pairs, a process's share of a batch or a part of it.

    Attributes:
        image, text: (b, L, D) float32 features in the space that images and captions share; the text's is masked if
            asked for.
        labels: (b, L) ids of the words that were masked, elsewhere 0; None unless asked for.
    """

    image: Tensor
    text: Tensor
    labels: Tensor | None


class TokenObjective(_ModuleObjective):
    """A loss of tokens: masked language modelling, say.

    Tokens of a pair meet only each other, so every process computes rows of its own pairs, in parts if it must; what is
    made of the rows is computed of the whole batch.

    Attributes:
        masks_words: whether words of the captions are to be masked (`datasets.masking`).
    """

    masks_words: ClassVar[bool] = False

    def forward(self, tokens: PairTokens) -> Tensor:
        """(b, k) float32, what the loss needs of each pair. May be given no pairs."""
        raise NotImplementedError

    def reduce(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(B, k) rows of the whole batch and (B,) weights → its loss, a scalar."""
        raise NotImplementedError


def cosine_similarity(image: Tensor, text: Tensor) -> Tensor:
    """(B, D) and (C, D) features → (B, C) cosines."""
    return F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
