"""IRRA's identity loss: one classifier shared by both modalities."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from solver.objectives.base import EncodedBatch, Objective, Sizes
from solver.objectives.irra import irra_rate
from solver.settings import OBJECTIVES, IrraSettings, OptimizerSettings


@OBJECTIVES.register("id")
class IdentityLoss(Objective):
    """Cross-entropy of the image's identity, averaged over the BGE of image and caption."""

    Settings = IrraSettings
    settings: IrraSettings
    published = half_weights = True
    needs = ("BGE",)

    def __init__(self, settings: IrraSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.classifier = nn.Linear(sizes.widths["BGE"], sizes.identities)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def learning_rate(self, parameter: str, optimizer: OptimizerSettings) -> float:
        """See `irra_rate`."""
        return irra_rate(parameter, optimizer, self.settings.lr_factor)

    def forward(self, batch: EncodedBatch) -> Tensor:
        """See `Objective.forward`."""
        image, text = (self._cross_entropy(part["BGE"], batch.pids) for part in (batch.image, batch.text))
        return self.settings.id_loss_weight * batch.mean((image + text) / 2)

    def _cross_entropy(self, embedding: Tensor, pids: Tensor) -> Tensor:
        logits = self.classifier(embedding.to(self.classifier.weight.dtype)).float()
        return F.cross_entropy(logits, pids, reduction="none")
