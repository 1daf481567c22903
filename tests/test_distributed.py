"""Several processes equal one, and end together: launched as users launch them, on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.kill_resume import differences
from datasets.noise import draw_permutation
from tests import datasets_on_disk, ranks_worker
from tests.test_training import ROOT, SMALL, records
from train import build
from utils.options import resolve, run_facts

COMMANDS = (
    "--loss_names TAL --tse_bn frozen",
    "--loss_names TAL --tse_bn batch",
    "--loss_names SDM --tse_bn frozen --sampler identity --num_instance 2 --batch_size 8",
    "--loss_names SDM --tse_bn batch",
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def launch(processes: int, what: str, folder: Path) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, str(processes), str(ROOT / "tests/ranks_worker.py"), what, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


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


def prepare(folder: Path, dataset_name: str) -> str:
    """Write a data set of 24 pairs and half of them noisy; the command that trains on it, in batches of 7."""
    datasets_on_disk.write(folder, dataset_name)
    np.save(folder / "noise.npy", draw_permutation(24, 0.5))
    shared = (
        f"train.py --dataset_name {dataset_name} --root_dir {folder} --noisy_rate 0.5 --noisy_file {folder}/noise.npy"
    )
    return " ".join(
        [shared, *SMALL, "--img_aug --txt_aug --img_size 48 16 --num_epoch 2 --eval_period 2 --batch_size 7"]
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The same four trainings by 1, 2 and 4 processes; batches of 7 pairs, the last of an epoch of 3."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = prepare(folder, "RSTPReid") + " --optimizer SGD"  # Adam would hide a factor on the gradients
    for processes in (1, 2, 4):
        lines = [f"{shared} {line}" for line in COMMANDS]
        lines[2] += " --grad_accum 2" if processes > 1 else ""
        (folder / "commands").write_text("\n".join(lines))
        done = launch(processes, "training_in_float64", folder)
        assert done.returncode == 0, done.stderr
        for checkpoint in folder.glob(f"world{processes}/*/*/*/*.pth"):
            checkpoint.unlink()  # 200 MB a run
    return folder


def kept(folder: Path, number: int, world: int) -> list[dict]:
    """What each process kept of a line's training."""
    files = [folder / f"world{world}" / str(number) / f"rank{rank}.pth" for rank in range(world)]
    return [torch.load(file, weights_only=True) for file in files]


def the_run(folder: Path, number: int, world: int) -> Path:
    (run_dir,) = (folder / f"world{world}" / str(number)).glob("*/*_*")
    return run_dir


@pytest.mark.parametrize("number", range(len(COMMANDS)))
@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_equal_one(runs, number, processes):
    (expected,), every = kept(runs, number, 1), kept(runs, number, processes)
    assert len(expected["losses"]) >= 4
    assert len(expected["labels"]) == 2
    assert expected["losses"][0].dtype == torch.float64
    for found in every:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["labels"], expected["labels"], rtol=0, atol=0)
        torch.testing.assert_close(found["weights"], every[0]["weights"], rtol=0, atol=0)
    many, one = (the_run(runs, number, world) for world in (processes, 1))
    for record, line in zip(records(many), records(one), strict=True):
        assert record["ccd"] == line["ccd"]
    assert len(json.loads((many / "test_metrics.json").read_text())) == 2
    assert (many / "train_log.txt").read_text().count("CCD:") == 2, "one process writes the log"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A training by two processes whose launcher got a SIGTERM in the second epoch, in logs/; what was printed."""
    folder = tmp_path_factory.mktemp("stopped")
    command = f"{prepare(folder, 'RSTPReid')} --optimizer SGD --lr 1e-2 --output_dir {folder}/logs"
    (folder / "command").write_text(command)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen([*TORCHRUN, "2", *command.split()], **pipes, env=ENVIRONMENT, cwd=ROOT)
    printed = []
    for line in launcher.stdout:
        printed.append(line)
        if "Epoch 2/2" in line:
            launcher.send_signal(signal.SIGTERM)  # the loop goes on for as long as any process is left that could print
    (folder / "printed").write_text("".join(printed))
    assert launcher.wait() != 0
    return folder


@pytest.fixture(scope="module")
def real_runs(stopped) -> Path:
    """The commands as they are, in float32 and less, by one process without a launcher and by two."""
    rstp, cuhk = (stopped / "command").read_text(), prepare(stopped, "CUHK-PEDES")
    (stopped / "CUHK-PEDES/imgs/cam_train/0003_1.jpg").write_bytes(b"")
    (stopped / "marks.csv").write_text("pair,exclude\n3,x\n4,x\n")
    (run_dir,) = stopped.glob("logs/*/*")
    for world in (1, 2):
        own = stopped / f"world{world}"
        shutil.copytree(run_dir, own / "3/RSTPReid/0_continued")
        lines = [
            f"{rstp} --output_dir {own}/0",
            f"{rstp} --output_dir {own}/1 --loss_names SDM --tse_bn batch",
            f"{cuhk} --output_dir {own}/2 --exclude {stopped}/marks.csv --on_bad_image skip",
            f"train.py --resume --output_dir {own}/3",
        ]
        if world == 2:
            lines += [f"{rstp} --output_dir {own}/{4 + half} --precision {('bf16', 'fp16')[half]}" for half in (0, 1)]
        lines += [f"{rstp} --test", f"test.py --output_dir {own}/0 --device cpu"]
        (stopped / "commands").write_text("\n".join(lines))
        if world == 2:
            done = launch(2, "training", stopped)
            assert done.returncode == 0, done.stderr
            (own / "printed").write_text(done.stdout)
        else:
            with pytest.MonkeyPatch.context() as patch, (own / "printed").open("w") as file, redirect_stdout(file):
                ranks_worker.training(stopped, patch.setattr)
    return stopped


def assert_near(found: dict, expected: dict, run_dir: Path) -> None:
    """Weights differ by rounding only: by a small share of the way that the run has moved them.

    A cosine's last place, 2⁻²³, is 8e-6 after division by τ; normalising batches of three rows multiplies it by ten.
    """
    options = resolve({"config": str(run_dir / "configs.yaml")})
    torch.manual_seed(options.seed)
    fresh = build(options).published_state()
    moved, apart = (
        torch.cat([(a[name].double() - b[name]).flatten() for name in fresh]).norm()
        for a, b in ((expected, fresh), (found, expected))
    )
    assert moved > 1e-3
    assert apart < 5e-4 * moved


@pytest.mark.parametrize("number", range(3))
def test_two_processes_equal_one_in_float32_up_to_rounding(real_runs, number):
    """With pairs that are excluded and pairs without an image, too."""
    (expected,), every = kept(real_runs, number, 1), kept(real_runs, number, 2)
    assert expected["losses"][0].dtype == torch.float32
    assert len(expected["losses"]) == (6 if number == 2 else 8), "20 pairs are left of 24"
    one, two = (the_run(real_runs, number, world) for world in (1, 2))
    assert_near(every[0]["weights"], expected["weights"], one)
    for found in every:
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["labels"], expected["labels"], rtol=0, atol=0)
        torch.testing.assert_close(found["weights"], every[0]["weights"], rtol=0, atol=0)
    assert run_facts(one / "configs.yaml") | {"processes": 2} == run_facts(two / "configs.yaml")
    assert [record["ccd"] for record in records(one)] == [record["ccd"] for record in records(two)]


@pytest.mark.parametrize("number", [4, 5])
def test_processes_in_half_precision_end_with_the_same_weights(real_runs, number):
    first, other = kept(real_runs, number, 2)
    torch.testing.assert_close(first, other, rtol=0, atol=0)
    (exact,) = kept(real_runs, 0, 1)
    torch.testing.assert_close(first["losses"][0], exact["losses"][0], rtol=1e-2, atol=0)
    assert not torch.equal(first["losses"][0], exact["losses"][0]), "half precision is in use"
    assert all(weight.isfinite().all() for weight in first["weights"].values())


def test_a_run_whose_launcher_was_stopped_is_continued_by_any_number_of_processes(real_runs):
    printed = (real_runs / "printed").read_text()
    assert printed.count("Stopped: what the last whole epoch led to is saved; go on with: train.py --resume") == 1
    one, two = (the_run(real_runs, 3, world) for world in (1, 2))
    for run_dir in (one, two):
        log = (run_dir / "train_log.txt").read_text()
        assert log.count("Continuing after epoch 1:") == 1
        assert log.count("it began with 2 processes and goes on with 1") == (run_dir == one)
    uninterrupted = the_run(real_runs, 0, 2)
    assert [name for name in differences(two, uninterrupted) if not name.startswith("figures")] == []
    (found,), whole = kept(real_runs, 3, 1), kept(real_runs, 0, 2)[0]
    torch.testing.assert_close(found["losses"], whole["losses"][4:], rtol=1e-5, atol=1e-6)
    assert_near(found["weights"], whole["weights"], one)


def test_a_run_is_compared_by_all_that_it_leaves(real_runs, tmp_path):
    """By `benchmarks.kill_resume`, that is, which must not find runs the same because it doesn't look."""
    run_dir = shutil.copytree(the_run(real_runs, 0, 2), tmp_path / "run")
    assert differences(run_dir, the_run(real_runs, 0, 2)) == []
    content = torch.load(run_dir / "last.pth", weights_only=True)
    content["optimizer"]["state"][0]["momentum_buffer"][0] += 1e-3
    torch.save(content, run_dir / "last.pth")
    (run_dir / "epochs/0001.npz").unlink()
    (run_dir / "best.pth.partial").touch()
    assert differences(run_dir, the_run(real_runs, 0, 2)) == ["best.pth.partial", "epochs/0001.npz", "last.pth"]


def test_two_processes_test_as_one_does_and_tell_it_once(real_runs):
    printed = [(real_runs / f"world{world}/printed").read_text() for world in (1, 2)]
    tables = [text[text.index("tiny on RSTPReid, test") :] for text in printed]
    assert tables[1].rstrip() == tables[0].rstrip()
    assert tables[0].count(" on RSTPReid, test") == 3
    for world in (1, 2):
        log = (the_run(real_runs, 0, world) / "test_log.txt").read_text()
        assert log.count("last.pth on RSTPReid") == 2, "its own test and test.py's"


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
