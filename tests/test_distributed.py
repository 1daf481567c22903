"""Several processes give the results of one, and end together, on the CPU; with torchrun where a launcher is needed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.kill_resume import differences
from datasets.noise import draw_permutation
from tests import datasets_on_disk, ranks_worker, small_clip
from tests.float64 import TOLERANCE, in_float64
from tests.test_training import ROOT, SMALL, records
from utils.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.numeric]

COMMANDS = (
    "--loss_names TAL --tse_bn frozen",
    "--loss_names TAL --tse_bn batch",
    "--loss_names SDM --tse_bn frozen --sampler identity --num_instance 2 --batch_size 8",
    "--loss_names SDM --tse_bn batch",
    "--heads BGE --trained BGE --division all --loss_names sdm+mlm+id --cmt_depth 1",
    "--heads BGE --trained BGE --division decl --loss_names DECL --decl_warmup 1",
    "--heads BGE --trained BGE --division crcl --loss_names CRCL --crcl_warmup 1",
)
WITH_GRAD_ACCUM = (2, 4, 5, 6)  # run by several processes
BY_FOUR = (1, 2, len(COMMANDS))  # TAL over the batch's statistics, SDM by identities, pairs that are excluded
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
PRELOADED = ["tests.ranks_worker", "tests.float64", "assembly", "solver.correspondence.ccd", "torch._dynamo"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run_together(processes: int, work: Callable[[Path], None], folder: Path, printed: Path) -> None:
    """Run `work` in processes like torchrun's, but forked after all imports, which would take each of them seconds."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started = []
    for rank in map(str, range(processes)):
        of_launcher = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        started.append(context.Process(target=ranks_worker.run_as, args=(of_launcher, printed, work, folder)))
        started[-1].start()
    for process in started:
        process.join(timeout=300)
    assert [process.exitcode for process in started] == [0] * processes


def prepare(folder: Path, dataset_name: str) -> str:
    """Write a data set of 24 pairs, half of them noisy; returns the command that trains on it in batches of 7."""
    datasets_on_disk.write(folder, dataset_name)
    np.save(folder / "noise.npy", draw_permutation(24, 0.5))
    data = f"--dataset_name {dataset_name} --root_dir {folder} --noisy_rate 0.5 --noisy_file {folder}/noise.npy"
    small = "--img_size 48 16 --text_length 24 --num_epoch 2 --eval_period 2 --batch_size 7"
    return " ".join(["train.py", data, *SMALL, "--img_aug --txt_aug", small])


def run_here(folder: Path, printed: Path) -> None:
    """Run the commands in this process, without a launcher."""
    with pytest.MonkeyPatch.context() as patch, printed.open("w") as file, redirect_stdout(file):
        ranks_worker.training(folder, patch.setattr)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The same training runs in float64 by 1, 2 and, for some, 4 processes, in batches of 7, the last of 3 or 6."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = prepare(folder, "RSTPReid") + " --optimizer SGD"  # Adam would hide a factor on the gradients
    marked = prepare(folder, "CUHK-PEDES") + f" --optimizer SGD --exclude {folder}/marks.csv --on_bad_image skip"
    (folder / "CUHK-PEDES/imgs/cam_train/0003_1.jpg").write_bytes(b"")
    (folder / "marks.csv").write_text("pair,exclude\n3,x\n4,x\n")
    for processes in (1, 2, 4):
        lines = [f"{shared} {line}" for line in COMMANDS]
        for number in WITH_GRAD_ACCUM if processes > 1 else ():
            lines[number] += " --grad_accum 2"
        lines += [marked, f"{shared} --test", f"test.py --output_dir {folder}/world{processes}/0 --device cpu"]
        if processes == 4:  # where rows of all processes interact, and some have none
            lines = [line if number in BY_FOUR else "" for number, line in enumerate(lines)]
        (folder / "commands").write_text("\n".join(lines))
        own = folder / f"world{processes}"
        own.mkdir()
        if processes == 1:
            with in_float64():
                run_here(folder, own / "printed")
        else:
            run_together(processes, ranks_worker.all_in_float64, folder, own / "printed")
    return folder


@pytest.mark.usefixtures("float64")
def test_gather_and_batch_norm_equal_a_single_process(runs):
    layer, batches = ranks_worker.batch_norm()
    plain = torch.nn.BatchNorm1d(3)
    plain.load_state_dict(layer.state_dict())
    expected = []
    for rows in batches:
        rows.requires_grad_()
        plain.zero_grad()
        loss = ranks_worker.loss_of(plain(rows))
        loss.backward()
        expected.append((loss.detach(), rows.grad.view(-1, 4, 3), *(p.grad.clone() for p in plain.parameters())))
    for rank in range(4):
        found, state, decision = torch.load(runs / f"rank{rank}.pth", weights_only=True)
        torch.testing.assert_close(found, expected, **TOLERANCE)
        torch.testing.assert_close(state, dict(plain.state_dict()), **TOLERANCE)
        assert decision == "by 0"
    assert (runs / "built").read_text() == "0"


def kept(folder: Path, number: int, world: int) -> list[dict]:
    """What each process saved from a line's training."""
    files = [folder / f"world{world}" / str(number) / f"rank{rank}.pth" for rank in range(world)]
    return [torch.load(file, weights_only=True) for file in files]


def run_dir_of(folder: Path, number: int, world: int) -> Path:
    (run_dir,) = (folder / f"world{world}" / str(number)).glob("*/*_*")
    return run_dir


@pytest.mark.parametrize(
    ("processes", "number"), [(2, number) for number in range(len(COMMANDS) + 1)] + [(4, number) for number in BY_FOUR]
)
def test_multi_process_training_equals_single_process(runs, number, processes):
    """Also with excluded pairs and pairs without an image."""
    (expected,), every = kept(runs, number, 1), kept(runs, number, processes)
    assert len(expected["losses"]) >= 4
    assert number < len(COMMANDS) or len(expected["losses"]) == 6, "20 of 24 pairs remain"
    assert len(expected["labels"]) == 2
    assert expected["losses"][0].dtype == torch.float64
    for found in every:
        torch.testing.assert_close(found, expected, **TOLERANCE)
        torch.testing.assert_close(found["labels"], expected["labels"], rtol=0, atol=0)
        torch.testing.assert_close(found["weights"], every[0]["weights"], rtol=0, atol=0)
    many, one = (run_dir_of(runs, number, world) for world in (processes, 1))
    for record, line in zip(records(many), records(one), strict=True):
        assert record["ccd"] == line["ccd"]
    assert RunFolder(one).facts() | {"processes": processes} == RunFolder(many).facts()
    assert len(json.loads((many / "test_metrics.json").read_text())) == 2
    assert (many / "train_log.txt").read_text().count("epoch=") == 2, "one process writes the log"


def test_multi_process_testing_equals_single_process_and_reports_once(runs):
    printed = [(runs / f"world{world}/printed").read_text() for world in (1, 2)]
    tables = [text[text.index(f"{small_clip.FILE} on RSTPReid, test") :] for text in printed]
    same = [re.sub(r"(Testing|  device:) .*\n", "", text).rstrip() for text in tables]  # the run's folder, the threads
    assert same[1] == same[0]
    assert tables[0].count(" on RSTPReid, test") == 3
    for world in (1, 2):
        log = (run_dir_of(runs, 0, world) / "test_log.txt").read_text()
        assert log.count("last.pth on RSTPReid") == 2, "its own test and test.py's"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of two processes whose launcher got SIGTERM in the second epoch, in logs/, and its output."""
    folder = tmp_path_factory.mktemp("stopped")
    command = f"{prepare(folder, 'RSTPReid')} --optimizer SGD --lr 1e-2 --output_dir {folder}/logs"
    (folder / "command").write_text(command)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen([*TORCHRUN, "2", *command.split()], **pipes, env=ENVIRONMENT, cwd=ROOT)
    printed = []
    for line in launcher.stdout:
        printed.append(line)
        if "Epoch 2/2" in line:
            launcher.send_signal(signal.SIGTERM)  # the loop continues while any process is left that could print
    (folder / "printed").write_text("".join(printed))
    assert launcher.wait() != 0
    return folder


@pytest.fixture(scope="module")
def real_runs(stopped) -> Path:
    """The commands unchanged, in float32 and lower precision, by one process without a launcher and by two."""
    rstp = (stopped / "command").read_text()
    short = f"{rstp} --num_epoch 1 --warmup_epochs 0"
    (run_dir,) = stopped.glob("logs/*/*")
    for world in (1, 2):
        own = stopped / f"world{world}"
        shutil.copytree(run_dir, own / "2/RSTPReid/0_continued")
        lines = [
            f"{rstp} --output_dir {own}/0",
            f"{short} --output_dir {own}/1 --loss_names SDM --tse_bn batch",
            f"train.py --resume --output_dir {own}/2",
        ]
        adam = f"{short} --optimizer Adam --lr 1e-4"
        lines += [f"{adam} --output_dir {own}/{n} --precision fp16_{of}" for n, of in ((3, "weights"), (4, "adam"))]
        if world == 2:  # all pairs train, as the division may differ in half precision
            half = f"{short} --division all"
            of = enumerate(("bf16", "fp16", "fp32"), start=5)
            lines += [f"{half} --output_dir {own}/{n} --precision {precision}" for n, precision in of]
        (stopped / "commands").write_text("\n".join(lines))
        if world == 2:
            run_together(2, ranks_worker.training, stopped, own / "printed")
        else:
            run_here(stopped, own / "printed")
    return stopped


# For a loss in float32: cosines are off by a few times 2⁻²⁴, divided by τ = 0.015 or 0.02 in two softmaxes.
ROUNDING = 2 * 4 * 2**-24 / 0.015


def assert_same_step(found: dict, expected: dict, of_expected: int = 0) -> None:
    """Compare division and losses of the first step found with those expected, both from the same weights.

    Later steps aren't comparable: rounding can change a token selection or a maximum over tokens, so that gradients
    jump and training diverges. `test_multi_process_training_equals_single_process` compares whole runs in float64.
    """
    torch.testing.assert_close(found["labels"][0], expected["labels"][of_expected], rtol=0, atol=0)
    step = len(expected["losses"]) // len(expected["labels"]) * of_expected
    torch.testing.assert_close(found["losses"][0], expected["losses"][step], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("number", range(2))
def test_the_first_float32_step_of_two_processes_equals_one_up_to_rounding(real_runs, number):
    (expected,), every = kept(real_runs, number, 1), kept(real_runs, number, 2)
    assert expected["losses"][0].dtype == torch.float32
    for found in every:
        assert_same_step(found, expected)
        torch.testing.assert_close(found["weights"], every[0]["weights"], rtol=0, atol=0)


@pytest.mark.parametrize("number", [5, 6])
def test_processes_in_half_precision_end_with_the_same_weights(real_runs, number):
    first, other = kept(real_runs, number, 2)
    torch.testing.assert_close(first, other, rtol=0, atol=0)
    exact, _ = kept(real_runs, 7, 2)
    torch.testing.assert_close(first["losses"][0], exact["losses"][0], rtol=1e-2, atol=0)
    assert not torch.equal(first["losses"][0], exact["losses"][0]), "half precision is in use"
    assert all(weight.isfinite().all() for weight in first["weights"].values())


@pytest.mark.parametrize("number", [3, 4])
def test_two_processes_agree_in_fp16_weights_and_fp16_adam(real_runs, number):
    (one,), (first, second) = kept(real_runs, number, 1), kept(real_runs, number, 2)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first["losses"][0], one["losses"][0], rtol=1e-3, atol=1e-4)
    assert all(weight.isfinite().all() for weight in first["weights"].values())
    assert {name: value.dtype for name, value in first["weights"].items()} == {
        name: value.dtype for name, value in one["weights"].items()
    }


def test_a_stopped_distributed_run_resumes_with_one_or_two_processes(real_runs):
    printed = (real_runs / "printed").read_text()
    assert (
        printed.count("Stopped: the state after the last completed epoch is saved; resume with: train.py --resume") == 1
    )
    one, two = (run_dir_of(real_runs, 2, world) for world in (1, 2))
    for run_dir in (one, two):
        log = (run_dir / "train_log.txt").read_text()
        assert log.count("Resuming after epoch 1:") == 1
        assert log.count("started with 2 processes, resumed with 1") == (run_dir == one)
    uninterrupted = run_dir_of(real_runs, 0, 2)
    assert [name for name in differences(two, uninterrupted) if not name.startswith("figures")] == []
    (found,), whole = kept(real_runs, 2, 1), kept(real_runs, 0, 2)[0]
    assert_same_step(found, whole, of_expected=1)


def test_run_comparison_covers_all_output_files(real_runs, tmp_path):
    """`benchmarks.kill_resume` must not find runs equal because it compares too little."""
    run_dir = shutil.copytree(run_dir_of(real_runs, 0, 2), tmp_path / "run")
    assert differences(run_dir, run_dir_of(real_runs, 0, 2)) == []
    content = torch.load(run_dir / "last.pth", weights_only=True)
    content["optimizer"]["state"][0]["momentum_buffer"][0] += 1e-3
    torch.save(content, run_dir / "last.pth")
    (run_dir / "epochs/0001.npz").unlink()
    (run_dir / "best.pth.partial").touch()
    assert differences(run_dir, run_dir_of(real_runs, 0, 2)) == ["best.pth.partial", "epochs/0001.npz", "last.pth"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("mistake of all", "error: everybody's mistake"),
        ("mistake of one", "error: a mistake of rank 1 alone"),
        ("failure", "RuntimeError: rank 1 broke"),
        ("killed", "Signal 9 (SIGKILL)"),
    ],
)
def test_a_failure_ends_all_processes_and_is_reported_once(tmp_path, how, told):
    (tmp_path / "how").write_text(how)
    command = [*TORCHRUN, "2", str(ROOT / "tests/ranks_worker.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode != 0
    assert sum(line.count(told) for line in done.stderr.splitlines()) == 1, done.stderr
    assert_ended(tmp_path)


def assert_ended(folder: Path) -> None:
    """Check that both processes end within a minute."""
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
