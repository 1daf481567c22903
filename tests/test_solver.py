"""CCD, optimizer groups and schedules against the published numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model.names import to_published
from solver import ccd
from solver.optimizer import OptimizerSettings, build_optimizer
from solver.schedule import SCHEDULES, ScheduleSettings, learning_rate, set_learning_rates
from tests import published
from tests.test_model import golden_model

OPTIM = json.loads((published.GOLDEN / "optim.json").read_text())


def test_every_parameter_has_the_published_rate_and_decay():
    model = golden_model("frozen")
    optimizer = build_optimizer(model, model.new_parameters(), OptimizerSettings())
    assert optimizer.defaults["eps"] == OPTIM["adam"]["eps"]
    assert list(optimizer.defaults["betas"]) == OPTIM["adam"]["betas"]
    of_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = to_published(dict(model.named_parameters()))
    unused = {name for name in OPTIM["groups"] if "bns.1" in name or name.startswith("visul_emb_layer.linear")}
    assert named.keys() == OPTIM["groups"].keys() - unused
    for name, parameter in named.items():
        expected = OPTIM["groups"][name]
        group = of_parameter[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == (expected["lr"], expected["weight_decay"]), name


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
    np.testing.assert_allclose(vote.clean_probability, golden[f"{name}.clean_probability"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(vote.clean, golden[f"{name}.predicted_clean"].astype(bool))
