"""Failures during training: NaN and infinite values, broken images, full disks, interrupts."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
import yaml
from torch.amp import GradScaler

import train as training_root
from datasets.loaders import Batch
from processor import epoch, run
from processor.step import backward
from solver.objectives.training import TrainingLoss
from tests import datasets_on_disk
from tests.objectives import loss_of, step_state
from tests.test_losses import LOSSES
from tests.test_model import golden_model
from tests.test_training import ROOT, SMALL, records
from utils.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import NotFiniteError, UserError
from utils.program import run_program

pytestmark = pytest.mark.usefixtures("small_figures")


@pytest.fixture(scope="module")
def root_dir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    datasets_on_disk.write(root, "RSTPReid")
    return root


def train(root_dir: Path, output_dir: Path, *more: str) -> Path:
    """Two short epochs of 24 pairs in batches of 8; returns the run's folder."""
    wanted = ["--dataset_name", "RSTPReid", "--root_dir", str(root_dir), "--output_dir", str(output_dir)]
    wanted += [*SMALL, "--noisy_rate", "0", "--img_size", "48", "16", "--num_epoch", "2", *more]
    training_root.main(wanted)
    (run_dir,) = (output_dir / "RSTPReid").iterdir()
    return run_dir


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("loss", "parts", "trained"),
    [
        *((loss, 3, ("BGE", "TSE")) for loss in LOSSES),
        ("TAL", 5, ("BGE", "TSE")),
        ("TAL", 9, ("BGE", "TSE")),
        ("TAL", 3, ("BGE",)),
    ],
)
def test_grad_accum_gives_the_whole_batchs_gradients(loss, parts, trained):
    model = golden_model().train()
    generator = torch.manual_seed(0)
    ids = torch.cat([torch.full((5, 1), 510), torch.randint(1, 500, (5, 9), generator=generator)], dim=1)
    ids[:, -1] = 511
    images = torch.randn(5, 3, 96, 32, generator=generator)
    batch = Batch(images, ids, torch.tensor([0, 0, 1, 2, 3]), torch.arange(5))
    weight = torch.tensor([1.0, 1, 0, 1, 1])
    found = []
    for count in (1, parts):
        model.zero_grad(set_to_none=True)
        losses = backward(step_state(model, loss_of(loss, trained)), batch, weight, count)
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    of_tse = {name for name, _ in model.named_parameters() if name.startswith("heads.TSE")}
    assert bool(of_tse & found[0][1].keys()) == ("TSE" in trained), "no gradient where BGE alone is trained"


@pytest.mark.slow
def test_a_non_finite_loss_ends_the_run_and_names_its_pairs(root_dir, tmp_path):
    with pytest.raises(UserError) as caught:
        train(root_dir, tmp_path, "--lr", "1e30", "--warmup_epochs", "0")
    assert str(caught.value).startswith("epoch 1, step 2: the loss is NaN or infinite, with pairs ")
    assert "no checkpoint has been written yet" in str(caught.value)
    listed = str(caught.value).split("with pairs ")[1].split(";")[0].split(", ")
    assert len(set(map(int, listed))) == 8


@pytest.mark.slow
def test_a_non_finite_gradient_ends_the_run_before_a_checkpoint(root_dir, tmp_path, monkeypatch):
    steps = []

    def spoil(parameters: Iterator[torch.nn.Parameter]) -> None:
        steps.append(1)
        if len(steps) == 5:  # the second step of the second epoch
            list(parameters)[7].grad.view(-1)[3] = float("inf")

    monkeypatch.setattr(epoch, "sum_gradients", spoil)
    with pytest.raises(UserError, match=r"^epoch 2, step 2: a gradient is NaN or infinite, with pairs ") as caught:
        train(root_dir, tmp_path)
    (good,) = tmp_path.glob("*/*/last.pth")
    assert f"the last good checkpoint is {good}" in str(caught.value)
    content = load_checkpoint(good)
    assert content["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in content["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "first_lr_factor", "epochs", "told"),
    [
        ("1e39", "1e-43", "3", "after the last step: a weight is NaN or infinite"),
        ("1e30", "1e-34", "2", "the model's embeddings are NaN or infinite"),
    ],
)
def test_a_diverging_step_reaches_no_checkpoint(root_dir, tmp_path, lr, first_lr_factor, epochs, told):
    """Each epoch has one step, with finite loss and gradients; that of the second epoch is too large."""
    more = ["--lr", lr, "--warmup_factor", first_lr_factor, "--num_epoch", epochs, "--eval_period", epochs]
    with pytest.raises(UserError, match=f"^epoch 2, {told}") as caught:
        train(root_dir, tmp_path, "--batch_size", "24", *more)
    (good,) = tmp_path.glob("*/*/last.pth")
    assert f"the last good checkpoint is {good}; try a smaller --lr" in str(caught.value)
    content = load_checkpoint(good)
    assert content["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in content["model"].values())


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [("weight", math.inf, True), ("weight", math.nan, True), ("mask", math.nan, True), ("mask", -math.inf, False)],
)
def test_after_an_epoch_parameters_must_be_finite_and_buffers_not_nan(name, value, refused):
    """A causal mask has −∞ in it."""
    layer = torch.nn.Linear(2, 2)
    layer.register_buffer("mask", torch.zeros(2, 2))
    layer.state_dict()[name][0, 1] = value
    for state in (step_state(layer, TrainingLoss({}, ())), step_state(torch.nn.Linear(1, 1), layer)):
        with pytest.raises(NotFiniteError, match="a weight is NaN") if refused else contextlib.nullcontext():
            run._check_weights(state)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    file = tmp_path / "last.pth"
    save_checkpoint({"model": {"weight": torch.ones(1000)}}, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may grow further
    try:
        with pytest.raises(UserError, match=r"last.pth can't be written, is the disk full\?"):
            save_checkpoint({"model": {"weight": torch.zeros(1000)}}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(load_checkpoint(file)["model"]["weight"], torch.ones(1000))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "named"),
    [
        ("start_logging(Path('/dev/full')); logger.info('a line')", "/dev/full"),
        ("start_logging(Path('/dev/null')); logger.info('a line')", "standard output"),
        (
            "from utils.recorder import Recorder; recorder = Recorder(folder, 0); "
            "recorder.file = Path('/dev/full'); recorder.add({'epoch': 1})",
            "/dev/full",
        ),
        ("(folder / 'a.txt.partial').symlink_to('/dev/full'); write_text(folder / 'a.txt', 'a')", "{folder}/a.txt"),
        (
            "from utils.figures import plt, save; (folder / 'a.png.partial').symlink_to('/dev/full'); "
            "save(plt.figure(), folder / 'a.png')",
            "{folder}/a.png",
        ),
    ],
)
def test_a_full_disk_is_a_one_line_error_naming_the_file(tmp_path, write, named):
    program = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from utils.files import write_text
from utils.log import logger, start_logging
from utils.program import run_program

def main(_):
    folder = Path({str(tmp_path)!r})
    {write}

run_program(main)
"""
    with open("/dev/full" if named == "standard output" else "/dev/null", "w") as stdout:  # noqa: PTH123
        done = subprocess.run([sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.stderr == f"error: {named.format(folder=tmp_path)}: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.slow
def test_steps_skipped_by_the_loss_scaler_are_counted(root_dir, tmp_path, monkeypatch):
    scaler = GradScaler("cpu", init_scale=2.0**127, enabled=True)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler)
    run_dir = train(root_dir, tmp_path, "--precision", "bf16", "--num_epoch", "1", "--warmup_epochs", "0")
    (record,) = records(run_dir)
    assert record["skipped_steps"] == 127 - math.log2(scaler.get_scale()) > 0, "each skipped step halves the scale"
    told = f"{record['skipped_steps']} steps skipped by the loss scaler, its scale is {scaler.get_scale():g}"
    assert told in (run_dir / "train_log.txt").read_text()


@pytest.mark.slow
def test_a_broken_training_image_is_reported_or_excluded_with_its_pairs(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    broken = tmp_path / "RSTPReid/imgs/cam_train/0002_1.jpg"
    with datasets_on_disk.unreadable(broken):
        with pytest.raises(UserError) as caught:
            train(tmp_path, tmp_path / "logs")
        assert str(caught.value).startswith(f"image {broken} can't be read")
        assert "; training pairs 10, 11 (--on_bad_image skip skips them)" in str(caught.value)
        run_dir = train(tmp_path, tmp_path / "logs", "--on_bad_image", "skip")
        with pytest.raises(UserError, match="training pairs 10, 11"):  # recorded in the image cache, too
            train(tmp_path, tmp_path / "logs")
    log = (run_dir / "train_log.txt").read_text()
    assert f"skipped: image {broken} can't be read" in log
    assert "2 of 24 training pairs are skipped" in log
    facts = yaml.safe_load((run_dir / "configs.yaml").read_text())["_run_"]
    assert facts["skipped_pairs"] == [10, 11]
    assert str(broken) in facts["skipped_images"][0]
    for record in records(run_dir):
        assert record["ccd"]["clean"] + record["ccd"]["noisy"] + record["ccd"]["uncertain"] == 22
    (run_dir / "test_metrics.json").unlink()
    training_root.main(["--resume", str(run_dir)])  # without the image, as at its start, though it is readable again
    (run_dir / "test_metrics.json").unlink()
    datasets_on_disk.write(tmp_path, "RSTPReid")
    with pytest.raises(UserError, match=r"the unreadable images changed .*: pairs \[10, 11\], now \[\]"):
        training_root.main(["--resume", str(run_dir)])


@pytest.mark.slow
@pytest.mark.parametrize("division", ["all", "oracle"])
def test_pairs_without_an_image_are_in_no_batch(tmp_path, monkeypatch, division):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    (tmp_path / "RSTPReid/imgs/cam_train/0000_0.jpg").write_bytes(b"")
    seen, whole = [], epoch.backward

    def watched(state, batch, weight, *more):
        seen.extend(zip(batch.pairs.tolist(), weight.tolist()))
        return whole(state, batch, weight, *more)

    monkeypatch.setattr(epoch, "backward", watched)
    more = ["--on_bad_image", "skip", "--num_epoch", "1", "--warmup_epochs", "0", "--division", division]
    train(tmp_path, tmp_path / "logs", *more)
    assert sorted(seen) == [(pair, 1.0) for pair in range(2, 24)]


@pytest.mark.slow
def test_training_without_any_readable_image_is_refused(tmp_path):
    listed = datasets_on_disk.entries("RSTPReid")
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    for file in (tmp_path / "RSTPReid/imgs/cam_train").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the training images can be read"):
        train(tmp_path, tmp_path / "logs", "--on_bad_image", "skip")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interrupted", "told"),
    [
        ("datasets.image_cache._decode", "interrupted: no run was started or changed; run the same command again\n"),
        ("processor.run.train_epoch", "no epoch was completed yet; resume with: train.py --resume {run_dir}\n"),
        ("processor.run.evaluate", "no epoch was completed yet; resume with: train.py --resume {run_dir}\n"),
        (
            "processor.evaluate_run.evaluate",
            "the state after the last completed epoch is saved; resume with: train.py --resume ",
        ),
    ],
)
def test_an_interrupt_says_how_to_resume(tmp_path, monkeypatch, capsys, interrupted, told):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    monkeypatch.setattr(interrupted, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(SystemExit) as left:
            run_program(lambda _: train(tmp_path, tmp_path / "logs", "--num_epoch", "1", "--warmup_epochs", "0"))
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert left.value.code == 128 + signal.SIGTERM
    printed = capsys.readouterr()
    run_dir = next((tmp_path / "logs").glob("*/*"), None)
    assert told.format(run_dir=run_dir) in printed.err + printed.out
    assert (run_dir is None) == printed.err.startswith("interrupted: ")


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.slow
def test_a_misconfigured_network_is_a_one_line_error():
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | LAUNCHED | {"MASTER_PORT": str(port), "WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "nope0"}
    command = [sys.executable, ROOT / "test.py", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert f"error: the 1 processes can't connect at localhost:{port}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_waits_until_a_checkpoint_is_written(tmp_path, monkeypatch):
    def save(content: dict, stream: BinaryIO) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stream.write(content["model"])

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"model": b"weights"}, tmp_path / "last.pth")
    assert (tmp_path / "last.pth").read_bytes() == b"weights"


@pytest.mark.slow
def test_characters_the_terminal_lacks_are_escaped():
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils.program import run_program; "
    program += "run_program(lambda _: print('un caf\\xe9'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == ("un caf\\xe9\n", "", 0)


@pytest.mark.slow
def test_a_closed_output_pipe_is_not_an_error():
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils.program import run_program; "
    program += "run_program(lambda _: [print('a line', flush=True) for _ in range(99_999)])"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", program], **pipes)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 128 + signal.SIGPIPE


@pytest.mark.slow
def test_a_second_interrupt_exits_immediately():
    program = f"""import sys, time
sys.path.insert(0, {str(ROOT)!r})
from utils.program import run_program

def main(argv):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("leaving", flush=True)
        time.sleep(60)

run_program(main)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "leaving\n"
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait() == -signal.SIGINT
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("value", [0.0, 6e4, math.inf, -math.inf, math.nan])
def test_magnitude_is_finite_only_if_all_gradients_are(value):
    """Large float16 values whose norm overflows count as finite, and so do no gradients at all."""
    large = torch.full((100, 100), 6e4).half()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensors = [large, torch.ones(3), torch.zeros(0), torch.tensor([1.0, value]).to(dtype)]
        assert epoch.magnitude(tensors).isfinite() == math.isfinite(value)
    assert epoch.magnitude([]).isfinite()
