"""Rank of this process among those that a launcher (torchrun) started to train one model.

Read from the launcher's environment, which data loader workers inherit; without a launcher there is one process. No
heavy imports.
"""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher started this process, alone or with others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def master() -> str:
    """Address where the processes connect, under a launcher."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def rank() -> int:
    """This process's rank, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """Number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """This process's rank on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if launched() else 0


def is_main() -> bool:
    """Whether this is the one process that writes files and logs."""
    return rank() == 0


def share(count: int, of_rank: int | None = None) -> slice:
    """This process's (or `of_rank`'s) share of `count` items; in rank order the shares cover all items.

    Their lengths differ by at most one; with fewer items than processes some are empty.
    """
    number, world = rank() if of_rank is None else of_rank, world_size()
    return slice(number * count // world, (number + 1) * count // world)
