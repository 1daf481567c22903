"""IRRA, DECL and CRCL against the published numbers and slow oracles."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from datasets.loaders import Batch
from datasets.masking import Masking, mask_words
from datasets.tokenizer import MASK
from model.accelerate import accelerate
from model.backbones.clip import Clip
from model.backbones.clip_config import read_config
from model.encoder import DualEncoder
from model.weights import with_heads
from processor.state import TrainState
from processor.step import backward
from solver.correspondence.base import Facts
from solver.correspondence.ccd import COARSE, SoftCCD, divide
from solver.correspondence.crcl import SelfRefining
from solver.correspondence.decl import Evidential
from solver.correspondence.fixed import All
from solver.objectives.base import EncodedBatch, NamedEmbeddings, Sizes, cosine_similarity
from solver.objectives.crcl import CRCL
from solver.objectives.decl import DECL, evidential, hardness_triplet
from solver.objectives.training import build_loss
from solver.optimizer import parameter_groups
from solver.settings import CrclSettings, DeclSettings, MixtureSettings, OptimizerSettings
from tests import published
from utils.errors import OptionError
from utils.settings import Options

LISTED = json.loads((published.GOLDEN / "irra.json").read_text())
NAMES = {"sdm_loss": "sdm", "id_loss": "id", "mlm_loss": "mlm", "itc_loss": "itc", "cmpm_loss": "cmpm"}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return published.numbers("irra")


def irra(loss_names: str, **settings: object) -> TrainState:
    """IRRA's golden model and objectives."""
    weights = published.irra_weights()
    clip = {n.removeprefix("base_model."): value for n, value in weights.items() if n.startswith("base_model.")}
    config = read_config({**clip, "visual.positional_embedding": torch.empty(50, 64)}, "golden weights")
    backbone = Clip(replace(config, grid=(12, 4)))
    backbone.pretrained = frozenset(name for name, _ in backbone.named_parameters())
    model = accelerate(with_heads(backbone, Options(heads="BGE").of))
    options = Options(loss_names=loss_names, trained="BGE", cmt_depth=LISTED["cmt_depth"], **settings)
    loss = build_loss(options, Sizes(model.widths, LISTED["classes"], model.backbone.width, 512, 8))
    correspondence = All(None, Facts("all", 1, 0.0, "golden"))
    state = TrainState(model, loss, torch.optim.SGD(model.parameters()), GradScaler(enabled=False), correspondence)
    names = loss.saved_names()
    own = {n: v for n, v in weights.items() if n.startswith("base_model.") or n in names.values()}
    state._restore_weights({"model": own}, "golden weights")
    return state


def batch_of(golden: dict[str, np.ndarray]) -> Batch:
    columns = ("images", "caption_ids", "pids")
    images, ids, pids = (torch.from_numpy(golden[name]) for name in columns)
    labels, masked = (torch.from_numpy(golden[name]) for name in ("mlm_labels", "mlm_ids"))
    return Batch(images, ids, pids, torch.arange(8), labels, masked)


def gradient_norms(state: TrainState) -> dict[str, float]:
    model, loss = state.model, state.loss
    assert isinstance(model, DualEncoder)
    names = model.published_names() | {f"objectives.{name}": saved for name, saved in loss.saved_names().items()}
    parameters = {**dict(model.named_parameters()), **dict(loss.named_parameters())}
    return {names[name]: p.grad.norm().item() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("case", "parts"), [*((case, 1) for case in NAMES), ("mlm_loss", 3), ("sdm+id+mlm", 1), ("sdm+id+mlm", 3)]
)
def test_irras_losses_and_gradients_equal_the_published_ones(golden, case, parts):
    state = irra(NAMES.get(case, case))
    losses = backward(state, batch_of(golden), torch.ones(8), parts)
    assert sum(losses.values()).item() == pytest.approx(golden[f"{case}.value"].item(), rel=1e-5)
    expected = {n: v for n, v in json.loads(str(golden[f"{case}.gradient_norms"])).items() if v}
    found = {n: v for n, v in gradient_norms(state).items() if v or n in expected}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * max(expected.values()))


def test_irras_parameters_have_the_published_names_rates_and_decays():
    state = irra("sdm+id+mlm", lr_factor=5.0)
    settings = OptimizerSettings(lr=1e-5)
    names = state.model.published_names() | {f"objectives.{n}": s for n, s in state.loss.saved_names().items()}
    parameters = dict(state.model.named_parameters()) | dict(state.loss.named_parameters())
    groups = parameter_groups(parameters, state.loss.rates(settings), settings)
    found = {id(p): [group["lr"], group["weight_decay"]] for group in groups for p in group["params"]}
    assert {names[name]: found[id(p)] for name, p in parameters.items()} == {
        name: pytest.approx(pair) for name, pair in LISTED["parameters"].items()
    }
    assert state.weights().keys() == LISTED["irra"].keys()


def test_irras_new_parameters_are_drawn_as_published():
    torch.manual_seed(0)
    depth, D = 4, 512
    loss = build_loss(Options(loss_names="id+mlm", trained="BGE", cmt_depth=depth), Sizes({"BGE": D}, 500, D, 2000))
    deviation = {n: p.std().item() for n, p in loss.objectives.named_parameters() if "weight" in n and "ln_" not in n}
    small = D**-0.5 * (2 * depth) ** -0.5
    for name, found in deviation.items():
        if "mlm_head.ln" in name:
            continue
        expected = next(
            value
            for part, value in {
                "classifier": 0.001,
                "in_proj": D**-0.5,
                "out_proj": small,
                "c_fc": (2 * D) ** -0.5,
                "c_proj": small,
                "dense": (2 * D) ** -0.5,
                "fc": small,
            }.items()
            if part in name
        )
        assert found == pytest.approx(expected, rel=0.02), name
    assert not loss.objectives["id"].classifier.bias.any()


def test_words_are_masked_as_published():
    rng = np.random.default_rng(0)
    ids = np.zeros(77, np.int64)
    ids[:66] = [MASK + 1, *rng.integers(1, MASK, 64), MASK + 2]
    counts = np.zeros(4)
    for _ in range(3000):
        masked, labels = mask_words(ids, rng, Masking(0.8, 0.1, for_all_objectives=True))
        drawn = labels != 0
        assert np.array_equal(labels[drawn], ids[drawn])
        assert np.array_equal(masked[~drawn], ids[~drawn])
        assert not drawn[0]
        assert not drawn[65:].any()
        changed = masked[drawn] != ids[drawn]
        counts += [
            drawn.sum(),
            (masked[drawn] == MASK).sum(),
            (changed & (masked[drawn] != MASK)).sum(),
            (~changed).sum(),
        ]
    share = counts / [3000 * 64, *[counts[0]] * 3]
    assert share == pytest.approx([0.15, 0.8, 0.1, 0.1], abs=0.005)


def test_where_no_word_is_drawn_the_first_is_masked():
    ids = np.array([MASK + 1, 7, MASK + 2, 0, 0])
    found = [
        mask_words(ids, np.random.default_rng(seed), Masking(0.0, 1.0, for_all_objectives=True)) for seed in range(40)
    ]
    masks = {(tuple(masked), tuple(labels)) for masked, labels in found}
    assert masks == {
        ((MASK + 1, 7, MASK + 2, 0, 0), (0, 7, 0, 0, 0)),  # drawn but left unchanged
        ((MASK + 1, MASK, MASK + 2, 0, 0), (0, 7, 0, 0, 0)),
    }


@pytest.mark.numeric
@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("stage", ["warmup", "train"])
def test_the_evidential_loss_equals_the_published_one(case, stage):
    golden = published.case("decl", case)
    image, text = (torch.from_numpy(golden[name]).requires_grad_() for name in ("image", "text"))
    s = cosine_similarity(image, text)
    clean = torch.from_numpy(golden["clean"]) if stage == "train" else torch.ones(len(s))
    loss = evidential(s, clean.diag()) + evidential(s.T, clean.diag())
    np.testing.assert_allclose(loss.detach(), golden[f"{stage}.edl"], rtol=1e-5)
    loss.mean().backward()
    for modality, embedding in (("image", image), ("text", text)):
        expected = golden[f"{stage}.edl.grad_{modality}"]
        np.testing.assert_allclose(embedding.grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.numeric
@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("kind", ["rdh_mu", "rdh_all"])
def test_the_hardness_triplet_equals_the_published_one(case, kind):
    golden = published.case("decl", case)
    image, text = (torch.from_numpy(golden[name]).requires_grad_() for name in ("image", "text"))
    count = 5 if kind == "rdh_mu" else len(image) - 1
    loss = hardness_triplet(cosine_similarity(image, text), count)
    np.testing.assert_allclose(loss.detach(), golden[kind], rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    np.testing.assert_allclose(image.grad, golden[f"{kind}.grad_image"], rtol=1e-4, atol=1e-6)


def encoded(image: torch.Tensor, text: torch.Tensor, weight: torch.Tensor | None = None) -> EncodedBatch:
    weight = torch.ones(len(image)) if weight is None else weight
    parts = NamedEmbeddings({"BGE": image}), NamedEmbeddings({"BGE": text})
    return EncodedBatch(*parts, torch.arange(len(image)), weight)


@pytest.mark.numeric
@pytest.mark.parametrize("case", range(3))
def test_decls_uncertainty_and_division_equal_the_published_ones(case):
    golden = published.case("decl", case)
    batch = encoded(*(torch.from_numpy(golden[name]) for name in ("image", "text")))
    scores = {name: value.numpy() for name, value in DECL(None, Sizes({}, 1)).score(batch).items()}
    np.testing.assert_allclose(scores["uncertainty"], golden["uncertainty"], rtol=1e-5)
    correspondence = Evidential(DeclSettings(2), Facts("decl", 1, 0.5, "golden"))
    verdict = correspondence.decide(scores, np.ones(len(batch.pids), bool), 2)
    assert np.array_equal(verdict.weight.astype(bool), golden["predicted_clean"])
    assert not correspondence.scores_in(1)
    assert correspondence.decide({}, np.ones(5, bool), 1).weight.all()


@pytest.mark.numeric
def test_decls_loss_equals_the_oracle_as_its_negatives_decrease():
    """One pair and negative at a time."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 30, 8, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.0, 1.0] * 10)
    objective, batch = DECL(None, Sizes({}, 1, batch_size=30)), encoded(image, text, weight)
    s = batch.similarity("BGE")
    for step in (0, 1, 39, 40, 41, 900, 10**6):
        objective.steps.fill_(step)
        hardest = min(max(int(30 - 0.025 * step), 5), 29)
        triplets = 0.0
        for i in (i for i in range(30) if weight[i]):
            for row in (s[i].tanh(), s[:, i].tanh()):
                hinges = sorted((max(0.0, 0.2 + float(row[j] - row[i])) for j in range(30) if j != i), reverse=True)
                triplets += sum(hinges[:hardest]) / hardest
        target = weight.diag()
        expected = (evidential(s, target) + evidential(s.T, target)).mean() + 0.8 * triplets
        assert objective(batch).item() == pytest.approx(expected.item(), rel=1e-6)
        assert int(objective.steps) == step + 1


@pytest.mark.numeric
def test_decl_and_crcl_losses_of_a_single_pair_are_finite():
    one = encoded(torch.ones(1, 8), torch.ones(1, 8))
    for kind in (DECL, CRCL):
        objective = kind(None, Sizes({}, 1))
        assert math.isfinite(objective(one).item())
        assert all(value.isfinite().all() for value in objective.score(one).values())


STAGES = {"frozen": (0, 0), "end_of_warmup": (1, 0), "refined": (2, 0)}


@pytest.mark.numeric
@pytest.mark.parametrize("case", range(2))
@pytest.mark.parametrize("stage", STAGES)
def test_crcls_loss_and_labels_equal_the_published_ones(case, stage):
    golden = published.case("crcl", case)
    image, text = (torch.from_numpy(golden[name]).requires_grad_() for name in ("image", "text"))
    count = len(image)
    correspondence = SelfRefining(CrclSettings(), Facts("crcl", 1, 0.5, "golden", np.ones(count, bool)))
    correspondence.labels = torch.from_numpy(golden["last"]).float()
    objective, batch = CRCL(None, Sizes({}, 1)), encoded(image, text)
    weight = correspondence.refine(torch.arange(count), objective.score(batch), STAGES[stage][0]).detach()
    loss = objective(replace(batch, weight=weight))
    assert loss.item() == pytest.approx(golden[f"{stage}.loss"].item(), rel=1e-5)
    np.testing.assert_allclose(correspondence.labels.detach(), golden[f"{stage}.kept"], rtol=1e-5, atol=1e-6)
    loss.backward()
    for modality, embedding in (("image", image), ("text", text)):
        expected = golden[f"{stage}.grad_{modality}"]
        np.testing.assert_allclose(embedding.grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_crcl_labels_are_refined_after_warm_up_and_kept_across_rounds():
    settings = CrclSettings(crcl_rounds=(1, 2), crcl_warmup=2, crcl_beta=0.5)
    SelfRefining.check(settings, 7)
    found = SelfRefining(settings, Facts("crcl", 1, 0.5, "golden", np.array([True, False, True])))
    assert [found.round(epoch, 7) for epoch in range(7)] == [(0, 3)] * 3 + [(3, 4)] * 4
    assert found.in_rounds
    pairs, match = torch.tensor([0, 2]), {"match": torch.tensor([0.8, 0.05])}
    used = [found.refine(pairs, match, epoch).tolist() for epoch in range(5)]
    assert used[0] == used[1] == [1, 1]  # the first round's warm-up
    assert found.labels[1] == 1, "a pair that is in no batch"
    assert used[2] == pytest.approx([0.8, 0.0])  # half of the match that was kept, half of this one; 0.05 becomes 0
    assert used[3] == used[4] == used[2], "the second round's warm-up leaves them"
    verdict = found.decide({}, np.ones(2, bool), 5)
    assert verdict.weight == pytest.approx([0.8, 0])
    assert verdict.votes["label"].clean.tolist() == [True, False]
    again = SelfRefining(settings, found.facts)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.labels, found.labels)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            SelfRefining,
            CrclSettings(crcl_rounds=(5, 5)),
            r"--crcl_rounds 5 5: .*add up to 14 epochs, not",
        ),
        (SelfRefining, CrclSettings(crcl_rounds=(0, 8)), "--crcl_rounds 0 8: a round must have at least one epoch"),
        (SelfRefining, CrclSettings(crcl_warmup=12), "--crcl_warmup 12: must be below --num_epoch 12"),
        (Evidential, DeclSettings(12), "--decl_warmup 12: must be below --num_epoch 12"),
    ],
)
def test_epochs_that_do_not_go_together_are_refused(kind, settings, message):
    with pytest.raises(OptionError, match=message):
        kind.check(settings, 12)


@pytest.mark.numeric
def test_soft_ccd_weighs_by_the_mean_of_its_probabilities():
    rng = np.random.default_rng(0)
    losses = {name: np.abs(rng.normal(size=200) + 4 * (np.arange(200) % 2)) for name in ("BGE", "TSE")}
    facts = Facts("ccd-soft", 7, 0.5, "own", np.ones(200, bool))
    soft = SoftCCD(MixtureSettings("coarse"), facts).decide(losses, np.ones(200, bool), 3)
    votes = divide(losses, COARSE, (7, 3, 3)).votes
    for i in range(200):
        expected = (votes["BGE"].clean_probability[i] + votes["TSE"].clean_probability[i]) / 2
        assert soft.weight[i] == pytest.approx(expected)
    assert 0.01 < soft.weight[soft.weight < 0.5].max() < 0.5 < soft.weight.max()


def test_a_correspondence_gets_only_its_objectives_scores():
    options = Options(loss_names="TAL+DECL+CRCL", trained="BGE+TSE")
    loss = build_loss(options, Sizes({"BGE": 8, "TSE": 8}, 5, 8, 20, 8))
    assert loss.scores == ("BGE", "TSE", "uncertainty", "belief", "clean", "match")
    assert loss.scores_for("") == ("BGE", "TSE"), (
        "CCD divides pairs' losses, and no score that is high where they match"
    )
    assert loss.scores_for("DECL") == ("uncertainty", "belief", "clean")
    assert loss.scores_for("CRCL") == ("match",)
    alone = build_loss(Options(loss_names="CRCL", trained="BGE"), Sizes({"BGE": 8}, 5, 8, 20, 8))
    assert alone.scores_for("") == ()
