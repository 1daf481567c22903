"""Objectives and correspondences of a fork, within training states and steps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compatibility
from model.backbones.base import Tokens
from model.heads.batch_norm import GlobalBatchNorm1d
from model.heads.bge import GlobalEmbedding
from model.settings import HEADS
from model.weights import build_model, model_from_checkpoint
from processor import run
from processor.epoch import train_epoch
from processor.scoring import score_pairs
from processor.settings import LoopSettings
from processor.state import TrainState
from solver.correspondence.base import Correspondence, Verdict
from solver.objectives.base import AnyObjective, EncodedBatch, Objective, PairwiseObjective, Sizes, TokenObjective
from solver.settings import CORRESPONDENCES, OBJECTIVES, OptimizerSettings, ScheduleSettings
from tests.test_devices import PAIRS, batch_of, options_of, pairs_of, state_of
from utils.errors import NotFiniteError, OptionError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """Remove what a test registers."""
    for registry in (OBJECTIVES, CORRESPONDENCES, HEADS):
        monkeypatch.setattr(registry, "_found", {name: registry[name] for name in registry})


class Scaled(PairwiseObjective):
    """SigLIP's loss, whose scale and offset are learnt."""

    def __init__(self, settings: None = None) -> None:
        super().__init__(settings)
        self.scale, self.offset = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-10.0))

    def per_pair(self, similarity: Tensor, pids: Tensor) -> Tensor:
        match = torch.where(pids[:, None] == pids[None, :], 1.0, -1.0)
        loss = -nn.functional.logsigmoid(match * (self.scale * similarity + self.offset))
        return loss.sum(dim=0) + loss.sum(dim=1)


class Published(Objective):
    """An identity loss whose weights have names of its own in checkpoints."""

    published = True

    def __init__(self, settings: None, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.people = nn.Linear(sizes.widths["BGE"], sizes.identities)

    def forward(self, batch: EncodedBatch) -> Tensor:
        return batch.mean(nn.functional.cross_entropy(self.people(batch.text["BGE"]), batch.pids, reduction="none"))


def epoch_of(state: TrainState) -> None:
    """Train on one batch."""
    train_epoch(state, [batch_of(CPU)], np.ones(PAIRS, np.float32), LoopSettings())


@pytest.mark.parametrize(
    ("kind", "saved"),
    [(Scaled, {"objective.own.scale", "objective.own.offset"}), (Published, {"people.weight", "people.bias"})],
)
def test_parameters_are_trained_saved_restored_and_left_out_of_the_model(
    tmp_path: Path, kind: type[AnyObjective], saved: set[str]
):
    OBJECTIVES.register("own")(kind)
    given = {"loss_names": "TAL+own+id", "division": "all"}
    state, again, options = state_of(CPU, **given), state_of(CPU, **given), options_of(**given)
    own, trained = (
        state.loss.objectives["own"],
        {id(p) for group in state.optimizer.param_groups for p in group["params"]},
    )
    assert {id(parameter) for parameter in own.parameters()} <= trained
    assert set(state.loss.rates(OptimizerSettings(head_lr=0.25)).values()) >= {0.25}
    before = [parameter.detach().clone() for parameter in own.parameters()]
    epoch_of(state)
    assert all((now != then).any() for now, then in zip(own.parameters(), before, strict=True))
    state.epoch = state.best_epoch = 1
    state.save(tmp_path, options)
    assert torch.load(tmp_path / "best.pth", weights_only=True)["model"].keys() >= saved
    again.restore(tmp_path / "last.pth", options)
    epoch_of(state)
    epoch_of(again)
    torch.testing.assert_close(again.weights(), state.weights(), rtol=0, atol=0)
    model_from_checkpoint(tmp_path / "best.pth", options.of)
    build_model(options_of(pretrain_choice=str(tmp_path / "best.pth")).of)


def test_an_unknown_reduction_is_refused():
    class Average(PairwiseObjective):
        reduction = "average"

    OBJECTIVES.register("average")(Average)
    with pytest.raises(OptionError, match='Average: reduction must be "sum" or "mean", not \'average\''):
        state_of(CPU, loss_names="average")


class Normalised(Objective):
    """Scores pairs by normalised embeddings."""

    scores = ("norm",)

    def __init__(self, settings: None, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.norm = nn.BatchNorm1d(sizes.widths["BGE"])

    def forward(self, batch: EncodedBatch) -> Tensor:
        return self.score(batch)["norm"].sum()

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:
        return {"norm": self.norm(batch.text["BGE"]).sum(dim=1)}


def test_scoring_leaves_an_objectives_statistics_and_training_updates_them():
    OBJECTIVES.register("own")(Normalised)
    state = state_of(CPU, loss_names="TAL+own", division="all")
    counted = state.loss.state_dict()["objectives.own.norm.num_batches_tracked"]
    score_pairs(state.model, state.loss, [batch_of(CPU)], PAIRS)
    assert counted == 0
    epoch_of(state)
    assert counted == 1


class Dropped(TokenObjective):
    """A token objective with dropout."""

    def __init__(self, settings: None, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.drop = nn.Dropout(0.5)


@pytest.mark.parametrize(("kind", "refused"), [(Dropped, True), (Normalised, False)])
def test_grad_accum_refuses_token_objectives_that_must_see_a_whole_batch(kind: type[AnyObjective], refused: bool):
    """Other objectives do see it."""
    OBJECTIVES.register("own")(kind)
    message = r"--grad_accum: own.drop \(Dropout\) must see a whole batch, and only once"
    with pytest.raises(OptionError, match=message) if refused else contextlib.nullcontext():
        state_of(CPU, loss_names="TAL+own", grad_accum=2)


class Neck(GlobalEmbedding):
    """BNNeck, the usual layer of re-ID."""

    layer = nn.BatchNorm1d

    def __init__(self, width: int, tokens: int, settings: None = None) -> None:
        super().__init__(width, tokens, settings)
        self.norm = self.layer(width)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.norm(super().forward(tokens))


@pytest.mark.parametrize(("layer", "refused"), [(nn.BatchNorm1d, True), (GlobalBatchNorm1d, False)])
def test_several_processes_refuse_batch_norm_over_their_own_pairs(monkeypatch, layer: type[nn.Module], refused: bool):
    monkeypatch.setattr(compatibility, "world_size", lambda: 2)
    monkeypatch.setattr(Neck, "layer", layer)
    HEADS.register("neck")(Neck)
    message = r"heads.neck.image.norm \(BatchNorm1d\) sees a process's pairs only, use model.heads.batch_norm.Global"
    with pytest.raises(OptionError, match=message) if refused else contextlib.nullcontext():
        state_of(CPU, heads="BGE+neck", trained="BGE+neck")


class Column(Correspondence):
    """Its weights would be broadcast to (B, B)."""

    scored, refines = False, True

    def refine(self, pairs: Tensor, scores: Mapping[str, Tensor], epoch: int) -> Tensor:  # noqa: ARG002
        return torch.ones(len(pairs), 1)


def test_refined_weights_of_another_shape_are_refused():
    CORRESPONDENCES.register("column")(Column)
    with pytest.raises(OptionError, match=r"--division column: refine must give \(6,\) weights, found shape \(6, 1\)"):
        epoch_of(state_of(CPU, division="column"))


class Failing(Correspondence):
    """Its scores are never finite."""

    scored = False

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:  # noqa: ARG002
        raise NotFiniteError("division: no loss is finite")


def test_an_error_in_the_division_does_not_blame_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "Recorder", lambda *_: None)
    CORRESPONDENCES.register("failing")(Failing)
    state, options = state_of(CPU, division="failing"), options_of(num_epoch=2)
    state.epoch = 1
    settings = run.RunSettings(LoopSettings(), options.of(ScheduleSettings), options)
    splits = SimpleNamespace(training=pairs_of(CPU))
    with pytest.raises(NotFiniteError, match=r"^epoch 2, division: .*; no checkpoint has been written yet$"):
        run.train(state, splits, settings, tmp_path)  # type: ignore[arg-type]


def test_a_correspondence_that_names_a_pairwise_objective_is_refused():
    CORRESPONDENCES.register("named")(type("Named", (Correspondence,), {"objective": "TAL"}))
    with pytest.raises(OptionError, match="--division named: TAL is pairwise: with an empty `objective` it gets"):
        compatibility.check_run(options_of(division="named"), CPU)
