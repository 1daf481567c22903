"""The log's first lines, those of each epoch, and the last."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import announce
import test as evaluation_root
import train as training_root
from processor.records import best_record
from processor.wording import epoch_line
from tests import datasets_on_disk
from tests.test_training import SMALL, printed_by
from utils import devices
from utils.errors import UserError
from utils.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("small_figures")
RECORD = {"epoch": 3, "loss": 2.4861, "pairs_per_second": 184.2}
METRICS = {"BGE": {"R1": 50.0, "mAP": 40.0}, "BGE+TSE": {"R1": 60.333, "mAP": 55.1}}


def test_epoch_lines_are_greppable():
    validated = epoch_line(RECORD | {"val": METRICS}, 60, ("BGE", "TSE"), 3725.4, "val")
    assert validated == "epoch=3/60 split=val R1=60.33 mAP=55.10 loss=2.486 pairs/s=184 ETA=1:02:05"
    assert "split=test R1=50.00 mAP=40.00" in epoch_line(RECORD | {"val": METRICS}, 60, ("BGE",), 0, "test")
    assert epoch_line(RECORD, 60, ("BGE", "TSE"), 30, "val") == "epoch=3/60 loss=2.486 pairs/s=184 ETA=0:00:30"


def test_ties_for_the_best_epoch_go_to_the_first():
    records = [{"epoch": n, "val": {"BGE": {"R1": r1}, "BGE+TSE": {"R1": -r1}}} for n, r1 in ((1, 5), (2, 7), (3, 7))]
    assert best_record([{"epoch": 4}, *records], "BGE")["epoch"] == 2
    assert best_record(records, "BGE+TSE")["epoch"] == 1
    assert best_record(records, "TSE+BGE")["epoch"] == 1
    assert best_record([{"epoch": 1}], "BGE") is None


@pytest.mark.slow
def test_a_run_logs_its_setup_and_its_results(tmp_path):
    datasets_on_disk.write(tmp_path, "ICFG-PEDES")
    given = ["--dataset_name", "ICFG-PEDES", "--root_dir", str(tmp_path), "--noisy_rate", "0", *SMALL, "--seed", "7"]
    printed = printed_by(training_root, *given, "--output_dir", tmp_path / "logs", "--num_epoch", "2")
    head = printed[: printed.index("ICFG-PEDES, train:")]
    for part in (
        "device: cpu",
        "; processes: 1",
        "precision: fp32",
        "images 96×32",
        "seed: 7",
    ):
        assert part in head
    assert "batch: 8 pairs, epochs: 2" in head
    assert re.search(
        r"parameters by learning rate and weight decay: [\d,]+ at 0\.0001, .* at 0\.001, .*frozen: 0", printed
    )
    assert re.search(r", (1 thread|\d+ threads); processes", head)
    (run,) = (tmp_path / "logs").glob("*/*")
    log = (run / "train_log.txt").read_text()
    assert re.findall(r"epoch=(\d)/2 split=test R1=\d+\.\d\d mAP=\S+ loss=\S+ pairs/s=\d+ ETA=0:\d\d:\d\d", log) == [
        "1",
        "2",
    ]
    assert re.findall(r"ETA=(\S+)", log)[-1] == "0:00:00"
    assert "averages over the epoch so far" in log
    tested = json.loads((run / "test_metrics.json").read_text())
    assert RunFolder(run).facts()["selected_on"] == "test"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = best_record(records, "BGE+TSE")
    assert tested["best.pth"]["epoch"] == best["epoch"]
    assert tested["last.pth"]["epoch"] == 2
    r1, test = best["val"]["BGE+TSE"]["R1"], tested["best.pth"]["BGE+TSE"]
    last = printed.strip().splitlines()[-2]
    assert last.startswith(f"best R1 {r1:.2f} at epoch {best['epoch']} (test); test: R1 {test['R1']:.2f}, ")
    assert f"best.pth on ICFG-PEDES, test (epoch {best['epoch']})" in printed
    again = printed_by(evaluation_root, run, "--device", "cpu")
    assert again.startswith(f"Testing best.pth, last.pth of run {run}")


def test_learning_rates_and_frozen_parameters_are_logged(caplog):
    towers, head, bias, frozen = (torch.nn.Parameter(torch.zeros(n)) for n in (1200, 30, 4, 5))
    frozen.requires_grad_(False)
    model, loss = torch.nn.ParameterList([towers, head, frozen]), torch.nn.ParameterList([bias])
    groups: Any = [{"params": [towers], "lr": 1e-5}, {"params": [head], "lr": 1e-3}]
    groups.append({"params": [bias], "lr": 2e-3, "weight_decay": 0})
    optimizer = torch.optim.SGD(groups, weight_decay=4e-5)
    optimizer.param_groups[0] |= {"initial_lr": 1e-5, "lr": 1e-6}  # resumed in the warm-up
    state: Any = SimpleNamespace(model=model, loss=loss, optimizer=optimizer)
    with caplog.at_level("INFO", logger="rde"):
        announce.log_parameters(state)
    found = "1,200 at 1e-05, 4e-05; 30 at 0.001, 4e-05; 4 at 0.002, 0; frozen: 5"
    assert caplog.messages == [f"  parameters by learning rate and weight decay: {found}"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Found no NVIDIA driver on your system. Please check\n…"), "Found no NVIDIA driver"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled; choose auto"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate."), "CUDA out of memory; choose auto"),
    ],
)
def test_an_unavailable_device_is_refused_with_pytorchs_reason(monkeypatch, error, reason):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(devices.torch, "zeros", refuse)
    with pytest.raises(UserError, match=f"--device cuda: not available here: {reason}") as caught:
        devices.choose_device("cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("asked", "warned"), [("auto", True), ("cpu", False)])
def test_falling_back_to_the_cpu_is_warned_about(monkeypatch, asked, warned):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def refuse(*_: object, device: str) -> None:
        raise RuntimeError(f"The NVIDIA driver on your system is too old\nfor {device}")

    monkeypatch.setattr(devices.torch, "zeros", refuse)
    lines = []
    monkeypatch.setattr(announce.logger, "warning", lambda line, *arguments: lines.append(line % arguments))
    options = announce.Options({"device": asked, "precision": "fp32"})
    announce._log_machine(options, torch.device("cpu"))
    reason = "PyTorch, built for CUDA 13.0, can't use a GPU: The NVIDIA driver on your system is too old"
    assert [f"--device auto falls back to the CPU: {reason}; see" in line for line in lines] == [True] * warned
