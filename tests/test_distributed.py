"""Several processes equal one, and end together: launched as users launch them, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.noise import draw_permutation
from tests import datasets_on_disk, ranks_worker
from tests.test_training import ROOT, SMALL, records

COMMANDS = (
    "--loss_names TAL --tse_bn frozen",
    "--loss_names TAL --tse_bn batch",
    "--loss_names SDM --tse_bn frozen --sampler identity --num_instance 2 --batch_size 8",
    "--loss_names SDM --tse_bn batch",
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def launch(processes: int, what: str, folder: Path, **more: object) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, str(processes), str(ROOT / "tests/ranks_worker.py"), what, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **more)


@pytest.mark.parametrize("processes", [1, 3])
def test_gathered_rows_and_batch_norm_have_one_processs_values_and_gradients(tmp_path, processes):
    done = launch(processes, "primitives", tmp_path)
    assert done.returncode == 0, done.stderr
    layer, batches = ranks_worker.batch_norm()
    plain = torch.nn.BatchNorm1d(3)
    plain.load_state_dict(layer.state_dict())
    expected = []
    for rows in batches:
        rows.requires_grad_()
        plain.zero_grad()
        loss = ranks_worker.loss_of(plain(rows))
        loss.backward()
        expected.append((loss.detach(), rows.grad.view(-1, 4, 3), *(p.grad for p in plain.parameters())))
    for rank in range(processes):
        found, state, decision = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, dict(plain.state_dict()))
        assert decision == "by 0"
    assert (tmp_path / "built").read_text() == "0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The same four trainings by 1, 2 and 4 processes; batches of 7 pairs, the last of an epoch of 3."""
    folder = tmp_path_factory.mktemp("ranks")
    datasets_on_disk.write(folder, "RSTPReid")
    np.save(folder / "noise.npy", draw_permutation(24, 0.5))
    shared = ["--dataset_name RSTPReid --noisy_rate 0.5 --img_aug --txt_aug --root_dir", str(folder), "--noisy_file"]
    shared += [str(folder / "noise.npy"), *SMALL, "--img_size 48 16 --num_epoch 2 --eval_period 2 --batch_size 7"]
    shared += ["--optimizer SGD"]  # Adam would hide a factor on the gradients
    for processes in (1, 2, 4):
        lines = [" ".join([*shared, line]) for line in COMMANDS]
        lines[2] += " --grad_accum 2" if processes > 1 else ""
        (folder / "commands").write_text("\n".join(lines))
        done = launch(processes, "training", folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("number", range(len(COMMANDS)))
@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_equal_one(runs, number, processes):
    one, many = (runs / f"world{world}" / str(number) for world in (1, processes))
    expected, found = (torch.load(folder / "kept.pth", weights_only=True) for folder in (one, many))
    assert len(found["losses"]) == len(expected["losses"]) >= 4
    assert expected["losses"][0].dtype == torch.float64
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-9, atol=1e-9)
    for label, wanted in zip(found["labels"], expected["labels"], strict=True):
        assert torch.equal(label, wanted)
    assert len(found["labels"]) == 2
    (one,), (many,) = (list(folder.glob("RSTPReid/*")) for folder in (one, many))
    weights, wanted = (torch.load(run / "last.pth", weights_only=True)["model"] for run in (many, one))
    torch.testing.assert_close(weights, wanted, rtol=1e-9, atol=1e-9)
    for record, line in zip(records(many), records(one), strict=True):
        assert record["ccd"] == line["ccd"]
    assert len(json.loads((many / "test_metrics.json").read_text())) == 2
    assert (many / "train_log.txt").read_text().count("CCD:") == 2, "one process writes the log"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("mistake of all", "error: everybody's mistake"),
        ("mistake of one", "error: a mistake of rank 1 alone"),
        ("failure", "RuntimeError: rank 1 broke"),
        ("killed", "Signal 9 (SIGKILL)"),
    ],
)
def test_a_failure_ends_all_processes_with_its_reason(tmp_path, how, told):
    (tmp_path / "how").write_text(how)
    done = launch(2, "failing", tmp_path)
    assert done.returncode != 0
    assert sum(line.count(told) for line in done.stderr.splitlines()) == 1, done.stderr
    assert_ended(tmp_path)


def test_no_process_outlives_its_launcher(tmp_path):
    (tmp_path / "how").write_text("hangs")
    command = [*TORCHRUN, "2", str(ROOT / "tests/ranks_worker.py"), "failing", str(tmp_path)]
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while len(list(tmp_path.glob("pid*"))) < 2:
        time.sleep(0.1)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert_ended(tmp_path)


def assert_ended(folder: Path) -> None:
    """Both processes are gone, within a minute."""
    pids = [int((folder / f"pid{rank}").read_text()) for rank in range(2)]
    deadline = time.monotonic() + 60
    while any(map(_runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
