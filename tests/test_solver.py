"""CCD, optimizer groups and schedules against the published numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

from solver.correspondence import ccd
from solver.correspondence.base import Facts
from solver.optimizer import build_optimizer
from solver.schedule import learning_rate, set_learning_rates
from solver.settings import SCHEDULES, OptimizerSettings, ScheduleSettings, labelled, split_loss_names
from tests import published
from tests.objectives import optimizer_arguments
from tests.test_model import golden_model
from utils.errors import UserError

pytestmark = pytest.mark.numeric

OPTIM = json.loads((published.GOLDEN / "optim.json").read_text())


def test_loss_labels_follow_the_published_script():
    assert labelled("TAL", 0.3, 0.015, 0.1, 0.2) == "TAL+sr0.3_tau0.015_margin0.1_n0.2"
    assert labelled("TAL+id", 0.3, 0.015, 0.1, 0.0) == "TAL+id+sr0.3_tau0.015_margin0.1_n0.0"
    assert labelled("sdm+mlm+id", 0.3, 0.015, 0.1, 0.5) == "sdm+mlm+id+n0.5"
    assert labelled("TAL+sr0.4_tau0.01_margin0.2_n0.5", 0.3, 0.015, 0.1, 0.2) == "TAL+sr0.4_tau0.01_margin0.2_n0.5"
    assert split_loss_names(labelled("TAL", 0.3, 0.015, 0.1, 0.2)) == ["TAL"]


def test_every_parameter_has_the_published_rate_and_decay():
    model = golden_model("frozen")
    optimizer = build_optimizer(*optimizer_arguments(model), OptimizerSettings())
    assert optimizer.defaults["eps"] == OPTIM["adam"]["eps"]
    assert list(optimizer.defaults["betas"]) == OPTIM["adam"]["betas"]
    of_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = model.published_names()
    published_names = {names[name]: parameter for name, parameter in model.named_parameters()}
    unused = {name for name in OPTIM["groups"] if "bns.1" in name or name.startswith("visul_emb_layer.linear")}
    assert published_names.keys() == OPTIM["groups"].keys() - unused
    for name, parameter in published_names.items():
        expected = OPTIM["groups"][name]
        group = of_parameter[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == (expected["lr"], expected["weight_decay"]), name


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_skipped_first_step_leaves_no_optimizer_state(name, monkeypatch):
    def garbage(like: torch.Tensor, **kept: object) -> torch.Tensor:
        return torch.full_like(like, 7e3, **kept)

    monkeypatch.setattr(torch, "empty_like", garbage)
    layer = torch.nn.Linear(8, 1, bias=False)
    start, scaler = layer.weight.detach().clone(), GradScaler("cpu", init_scale=2.0**16)
    optimizer = build_optimizer(dict(layer.named_parameters()), {}, OptimizerSettings(optimizer=name, lr=1e-2))
    for overflows in (True, False):
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 8)).sum()).backward()
        if overflows:
            layer.weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        moved = (layer.weight - start).abs().max()
        assert moved == 0 if overflows else 0 < moved <= 0.011


@pytest.mark.parametrize("name", OPTIM["lr_of_epoch_1_to_60_for_base_lr_1"])
def test_schedules_equal_the_published_ones(name):
    schedule, warmup = name.split(".warmup_")
    settings = ScheduleSettings(lrscheduler=schedule, warmup_method=warmup)
    rates = [learning_rate(1.0, epoch, settings) for epoch in range(60)]
    np.testing.assert_allclose(rates, OPTIM["lr_of_epoch_1_to_60_for_base_lr_1"][name], rtol=1e-9)


def test_all_schedules_are_covered():
    assert {name.split(".")[0] for name in OPTIM["lr_of_epoch_1_to_60_for_base_lr_1"]} == set(SCHEDULES)


def test_rates_are_set_from_the_base_rate_each_epoch():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 2.0}], lr=1.0)
    settings = ScheduleSettings()
    for epoch in (3, 30, 3):
        set_learning_rates(optimizer, epoch, settings)
        assert optimizer.param_groups[0]["lr"] == learning_rate(2.0, epoch, settings)


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize(("name", "settings"), [("coarse", ccd.COARSE), ("fine", ccd.FINE)])
def test_votes_equal_the_published_ones(case, name, settings):
    golden = published.case("division", case)
    vote = ccd.vote(golden["loss"], settings, seed=0)
    # Whether scikit-learn fits in float32 or float64 depends on its version; the division must not.
    np.testing.assert_allclose(vote.clean_probability, golden[f"{name}.clean_probability"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(vote.clean, golden[f"{name}.predicted_clean"].astype(bool))


def mixed_losses(seed: int, clean: int = 700, noisy: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping losses of clean and noisy pairs, and which are clean."""
    rng = np.random.default_rng(seed)
    loss = np.concatenate([rng.normal(0.2, 0.08, clean), rng.normal(0.9, 0.15, noisy)]).astype(np.float32)
    return loss, np.arange(clean + noisy) < clean


def test_agreeing_votes_decide_and_disagreement_is_a_coin_flip():
    bge, truly_clean = mixed_losses(0)
    tse = np.roll(bge, 150)  # the votes differ on 300 pairs
    first, again, other = (ccd.divide({"BGE": bge, "TSE": tse}, ccd.FINE, (1, epoch)) for epoch in (0, 0, 1))
    agreed = first.votes["BGE"].clean == first.votes["TSE"].clean
    np.testing.assert_array_equal(first.weight[agreed], first.votes["BGE"].clean[agreed])
    for division in (first, other):
        assert 0.35 < division.weight[~agreed].mean() < 0.65
    np.testing.assert_array_equal(first.weight, again.weight)
    assert (first.weight != other.weight).any()
    report = first.report(truly_clean)
    clean = first.votes["BGE"].clean & first.votes["TSE"].clean
    assert report["clean"] == clean.sum()
    assert report["uncertain"] == (~agreed).sum()
    assert report["clean"] + report["noisy"] + report["uncertain"] == 1000
    assert report["precision"] == pytest.approx((clean & truly_clean).sum() / clean.sum())
    assert report["recall"] == pytest.approx((clean & truly_clean).sum() / 700)


def test_separated_losses_are_divided_correctly():
    loss, truly_clean = mixed_losses(1)
    report = ccd.divide({"BGE": loss, "TSE": loss}, ccd.FINE, (1, 0)).report(truly_clean)
    assert report["precision"] > 0.99
    assert report["recall"] > 0.95
    assert report["uncertain"] == 0


def test_constant_losses_are_all_clean():
    constant = np.full(50, 0.3, np.float32)
    division = ccd.divide({"BGE": constant, "TSE": constant}, ccd.COARSE, (1, 0))
    assert (division.weight == 1).all()
    assert division.report(np.ones(50, bool))["recall"] == 1


def test_where_no_noise_is_seen_about_one_percent_is_called_noisy():
    loss = np.random.default_rng(0).normal(0.5, 0.1, 1000).astype(np.float32)
    blunt = ccd.Fit(max_iter=1, tol=1e-2, reg_covar=1.0)
    vote = ccd.vote(loss, blunt, seed=0)
    assert vote.clean_probability.min() > 0.5
    assert (~vote.clean).sum() == 1000 // 100 + 1, "those up to position N // 100 of the sorted probabilities"
    assert vote.clean_probability[~vote.clean].max() <= vote.clean_probability[vote.clean].min()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pair_without_a_loss_is_named(bad):
    loss, _ = mixed_losses(0)
    loss[17] = bad
    with pytest.raises(UserError, match="1 of 1000 pairs have no finite loss, the first is pair 17"):
        ccd.divide({"BGE": loss, "TSE": loss}, ccd.COARSE, (1, 0))


@pytest.mark.parametrize(
    ("noisy_rate", "dataset_name", "expected"),
    [(0.2, "CUHK-PEDES", ccd.COARSE), (0.5, "CUHK-PEDES", ccd.FINE), (0.0, "RSTPReid", ccd.FINE)],
)
def test_the_published_rule_chooses_the_mixture(noisy_rate, dataset_name, expected):
    facts = Facts("ccd", 1, noisy_rate, dataset_name)
    assert ccd.choose_fit("published", facts) == expected
    assert ccd.choose_fit("coarse", facts) == ccd.COARSE
    assert ccd.choose_fit("fine", facts) == ccd.FINE
