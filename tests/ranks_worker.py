"""Code that the processes of tests/test_distributed.py run: forked ones, and torchrun's `ranks_worker.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.heads.batch_norm import GlobalBatchNorm1d
from utils import program
from utils.distributed import broadcast_from_main, gather, main_process_first, sum_gradients
from utils.errors import UserError
from utils.ranks import rank, share, world_size

if TYPE_CHECKING:
    import numpy as np

    from processor.state import TrainState

COUNTS = (11, 4, 1)  # sizes of global batches; the last leaves some processes without rows


def batch_norm() -> tuple[nn.BatchNorm1d, list[torch.Tensor]]:
    """A layer and batches of rows, the same in every process."""
    generator = torch.manual_seed(0)
    layer = GlobalBatchNorm1d(3)
    nn.init.normal_(layer.weight, generator=generator)
    return layer, [5 + 2 * torch.randn(count * 4, 3, generator=generator) for count in COUNTS]


def loss_of(rows: torch.Tensor) -> torch.Tensor:
    """A loss in which all rows interact."""
    return (rows @ rows.T).softmax(dim=1).square().sum() + rows.pow(3).sum()


def primitives(folder: Path) -> None:
    """Save rows after batch normalisation and gathering, and their gradients, to compare with a single process."""
    layer, batches = batch_norm()
    results = []
    for rows in batches:
        count = len(rows) // 4
        local = rows.view(count, 4, 3)[share(count)].flatten(0, 1).requires_grad_()
        layer.zero_grad()
        loss = loss_of(gather(layer(local).unflatten(0, (-1, 4)), count).flatten(0, 1))
        loss.backward()
        sum_gradients(layer.parameters())
        results.append(
            (loss.detach(), gather(local.grad.unflatten(0, (-1, 4)), count), *(p.grad for p in layer.parameters()))
        )
    decision = broadcast_from_main(lambda: f"by {rank()}")
    with main_process_first():
        if not (folder / "built").exists():
            (folder / "built").write_text(str(rank()))
    torch.save([results, layer.state_dict(), decision], folder / f"rank{rank()}.pth")


def training(folder: Path, replace: Callable[[object, str, object], None] = setattr) -> None:
    """Run the commands in the lines of FOLDER/commands, and save what should be equal in all processes.

    These are the losses of each step, the division of each epoch and the final weights, in
    world<processes>/<line>/rank<rank>.pth.
    """
    import test
    import train
    from processor import epoch, figures, run

    for name in ("r1_per_epoch", "loss_histogram", "retrieval_sheet"):
        replace(figures, name, lambda *_, **__: None)  # they take most of the time of such a short training
    backward, train_epoch = epoch.backward, run.train_epoch
    recorded = {}

    def recorded_backward(*arguments: object) -> dict[str, torch.Tensor]:
        losses = backward(*arguments)
        recorded["losses"].append(torch.stack([*losses.values()]))
        return losses

    def recorded_train_epoch(state: TrainState, batches: object, weight: np.ndarray, *more: object) -> object:
        recorded["model"] = state.model
        recorded["labels"].append(torch.from_numpy(weight).clone())
        return train_epoch(state, batches, weight, *more)

    replace(epoch, "backward", recorded_backward)
    replace(run, "train_epoch", recorded_train_epoch)
    for number, command in enumerate((folder / "commands").read_text().splitlines()):
        if not command:
            continue
        program, *argv = command.split()
        output_dir = folder / f"world{world_size()}" / str(number)
        argv += [] if "--output_dir" in argv else ["--output_dir", str(output_dir)]
        recorded = {"losses": [], "labels": []}
        {"train.py": train, "test.py": test}[program].main(argv)
        if model := recorded.pop("model", None):
            output_dir.mkdir(parents=True, exist_ok=True)
            torch.save(recorded | {"weights": model.published_state()}, output_dir / f"rank{rank()}.pth")


def all_in_float64(folder: Path) -> None:
    """Run `primitives` and `training` in float64."""
    from tests.float64 import in_float64

    with in_float64():
        primitives(folder)
        training(folder)


def failing(folder: Path) -> None:
    """Fail as specified in FOLDER/how."""
    kind = (folder / "how").read_text()
    (folder / f"pid{rank()}").write_text(str(os.getpid()))
    distributed.all_reduce(torch.zeros(1))
    if kind == "mistake of all":
        raise UserError("everybody's mistake")
    if rank() == 1:
        program._REPORT_DELAY = 1  # the other processes have no error to report
        if kind == "mistake of one":
            raise UserError("a mistake of rank 1 alone")
        if kind == "failure":
            raise RuntimeError("rank 1 broke")
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    while True:
        distributed.all_reduce(torch.zeros(1))


def run_as(environment: dict[str, str], printed: Path, work: Callable[[Path], None], folder: Path) -> None:
    """Run `work` in a launcher's environment, printing to a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with printed.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    program.run_program(lambda _: work(folder))


if __name__ == "__main__":
    program.run_program(lambda argv: failing(Path(argv[0])))
