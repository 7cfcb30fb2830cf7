"""What a launcher such as torchrun tells each process by environment variables: checked before it is used.

In a process that no launcher started none of them is set, and it is the only one.
"""

import os

from hjepa_shards.errors import InputError

_MOST = 2**20


def num_started() -> int:
    """How many processes were started together (WORLD_SIZE); 1 without a launcher. InputError for anything else."""
    return _number("WORLD_SIZE", 1, 1, _MOST)


def rank_started() -> int:
    """Which of them this one is (RANK), in [0, num_started()). InputError for anything else."""
    return _number("RANK", 0, 0, num_started() - 1)


def local_rank() -> int:
    """Which of those on this machine this one is (LOCAL_RANK). InputError for anything else."""
    return _number("LOCAL_RANK", 0, 0, _MOST)


def require_meeting_point() -> int:
    """The port at which the processes meet. InputError naming what is missing or wrong of all these variables."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE={num_started()} is set, {', '.join(missing)} not; start with torchrun, or unset it"
        )
    rank_started()
    _number("LOCAL_WORLD_SIZE", 1, 1, num_started())
    return _number("MASTER_PORT", 0, 1, 2**16 - 1)


def _number(name: str, without: int, least: int, most: int) -> int:
    """without: where the variable is not set."""
    text = os.environ.get(name)
    if text is None:
        return without
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
        raise InputError(
            f"{name}={text}: a whole number from {least} to {most} expected; start with torchrun, which sets it, or "
            "unset it"
        )
    return int(text)
