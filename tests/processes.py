"""Programs that tests start and stop."""

import multiprocessing
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORKED_WITH = [
    *("hjepa_train.jobs.run", "hjepa_train.checkpoints.sharded_files", "hjepa_shards.building.shard_tasks"),
    *("torch._dynamo", "torch.distributed.fsdp"),
]
"""What ranks and build workers import; optimizers import torch._dynamo."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(url: str) -> None:
    """Until a server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


def start_ranks(work: Callable[[int, str], None], folder: Path, world: int = 2) -> None:
    """`work(rank, folder)` in as many processes, forked from one that has PyTorch already."""
    import torch.multiprocessing

    multiprocessing.set_forkserver_preload(FORKED_WITH)
    torch.multiprocessing.start_processes(work, args=(str(folder),), nprocs=world, start_method="forkserver")


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose output is kept; dead at the end of the block, whatever happens in it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            process.kill()
