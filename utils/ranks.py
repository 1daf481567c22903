"""Who this process is among those that a launcher (torchrun) started to train one model together.

Read from the launcher's environment, which also the processes of a data loader inherit; without a launcher there is one
process. Nothing heavy is imported here.
"""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher started this process as one of several, or of one."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def master() -> str:
    """Where the processes meet, under a launcher."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if launched() else 0


def is_main() -> bool:
    """Whether this is the one process that writes files and logs."""
    return rank() == 0


def share(count: int, of: int | None = None) -> slice:
    """The part of `count` things that is this process's (or that of rank `of`): together the shares are all, in order.

    Shares differ in length by one at most; with fewer things than processes some are empty.
    """
    number, world = rank() if of is None else of, world_size()
    return slice(number * count // world, (number + 1) * count // world)
