"""Programs that tests start and stop."""

import ctypes
import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, final

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


@final
class Forked:
    """A command under way, as `subprocess.Popen` would have it."""

    def __init__(self, process: ForkServerProcess, said: Path) -> None:
        self._process, self._said = process, said

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still there after {timeout} s"
        return (self._said / "out").read_bytes(), (self._said / "err").read_bytes()


@contextmanager
def forked(
    *words: object, said: Path, environment: Mapping[str, str] | None = None, namespace: str = ""
) -> Iterator[Forked]:
    """A command in a process group of its own, forked from a process that has PyTorch already: seconds sooner.

    words: such as "hjepa-train", "run", config.  said: a folder for what it prints, after what is there.
    namespace: a network namespace to run in.
    """
    said.mkdir(parents=True, exist_ok=True)
    multiprocessing.set_forkserver_preload(FORKED_WITH)
    process = multiprocessing.get_context("forkserver").Process(
        target=_run_program, args=([str(word) for word in words], str(said), dict(environment or {}), namespace)
    )
    process.start()
    try:
        yield Forked(process, said)
    finally:
        process.kill()
        process.join()


def _run_program(words: list[str], said: str, environment: dict[str, str], namespace: str) -> None:
    os.setsid()
    if namespace:
        with open(f"/run/netns/{namespace}", "rb") as file:
            assert not ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0), os.strerror(ctypes.get_errno())
    os.environ.update(environment)
    sys.argv = words
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    importlib.import_module(f"{words[0].replace('-', '_')}.cli").main()


def no_network_namespaces() -> str:
    """Why this machine makes no network namespaces; '' where it does."""
    if os.geteuid() or not shutil.which("ip"):
        return "network namespaces are made by root with iproute2"
    name = f"hjepa-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""
