"""Who this process is among those that a launcher (torchrun) started to train one model together.

Read from the launcher's environment, which also the processes of a data loader inherit; without a launcher there is one
process. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
import socket

from utils.errors import OptionError


def launched() -> bool:
    """Whether a launcher started this process as one of several, or of one."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def check_launcher() -> None:
    """See that what a launcher is to have left in the environment can be so.

    Raises:
        OptionError: names the variable that can't.
    """
    if not launched():
        return
    _check("WORLD_SIZE", 1, 1 << 20)
    for name in ("RANK", "LOCAL_RANK"):
        _check(name, 0, world_size() - 1)
    _check("MASTER_PORT", 1, 65535)
    address = os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(address or ".", None)
    except (OSError, UnicodeError):
        raise OptionError(f"the environment says MASTER_ADDR={address}, which is no machine's address") from None


def _check(name: str, low: int, high: int) -> None:
    text = os.environ.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and low <= int(text) <= high):
        raise OptionError(
            f"the environment says {name}={text}, which must be {low} to {high}: start with torchrun, which sets it, "
            f"or unset it to train in one process"
        )


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
