"""Two machines, as network namespaces with a cable between them: torchrun's rendezvous, one is lost, both continue."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from tests.hjepa_train.tiny import tiny_run
from tests.processes import Forked, forked, no_network_namespaces, running

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
Program = subprocess.Popen[bytes] | Forked
NODES = tuple(f"hjepa-{letter}-{os.getpid()}" for letter in "ab")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def nodes() -> Iterator[None]:
    """10.77.0.1 and 10.77.0.2."""
    if why := no_network_namespaces():
        pytest.skip(why)
    ip("netns", "add", NODES[0])
    try:
        ip("netns", "add", NODES[1])
        ip("link", "add", "hjepa0", "netns", NODES[0], "type", "veth", "peer", "name", "hjepa0", "netns", NODES[1])
        for number, node in enumerate(NODES, start=1):
            ip("-n", node, "addr", "add", f"10.77.0.{number}/24", "dev", "hjepa0")
            for device in ("lo", "hjepa0"):
                ip("-n", node, "link", "set", device, "up")
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "del", node], check=False, capture_output=True)


@contextmanager
def two_nodes(config: Path) -> Iterator[list[Program]]:
    """A rank on each, forked there with what torchrun gives to it."""
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [kill(node) for node in NODES])
        yield [
            stack.enter_context(
                forked(
                    *("hjepa-train", "run", config, "--resume", "auto"),
                    said=config.parent / f"said-{number}",
                    environment={"GLOO_SOCKET_IFNAME": "hjepa0", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511"}
                    | {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"},
                    namespace=node,
                )
            )
            for number, node in enumerate(NODES)
        ]


@contextmanager
def two_nodes_by_torchrun(config: Path) -> Iterator[list[Program]]:
    """The same command on both, as it is typed on a cluster."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "hjepa0", "OMP_NUM_THREADS": "1"}
    commands = [
        [
            *("ip", "netns", "exec", node, TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29511", "--rdzv-id", "hjepa"),
            *("--rdzv-conf", f"is_host={number == 1}"),  # it would look for a name, and there are none
            *("--local-addr", f"10.77.0.{number}", "-m", "hjepa_train", "run", str(config), "--resume", "auto"),
        ]
        for number, node in enumerate(NODES, start=1)
    ]
    with running(commands[0], env=environment) as first, running(commands[1], env=environment) as second:
        try:
            yield [first, second]
        finally:
            for node in NODES:
                kill(node)


def kill(node: str) -> None:
    """With -9, all that runs there."""
    pids = subprocess.run(["ip", "netns", "pids", node], check=True, capture_output=True).stdout.split()
    for pid in map(int, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for_step(processes: list[Program], config: Path, step: int) -> None:
    journal, deadline = config.parent / "tiny" / "metrics.jsonl", time.monotonic() + 120
    while not (journal.exists() and any(row["step"] >= step for row in read_metrics(journal))):
        assert [process.poll() for process in processes] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "parallel"), [("cut off", "ddp"), ("killed", "fsdp")])
def test_a_node_that_is_lost_ends_the_other_in_time_and_the_run_continues_from_its_checkpoint(
    shards: Path, tmp_path: Path, nodes: None, how: str, parallel: str
) -> None:
    del nodes
    lasting = {"training__epochs": 60, "training__ranks_timeout_s": 8, "training__parallel": parallel}
    config = tiny_run(shards, tmp_path, training__save_every_steps=3, **lasting)
    with (two_nodes_by_torchrun if how == "cut off" else two_nodes)(config) as processes:
        wait_for_step(processes, config, 5)
        began = time.monotonic()
        if how == "killed":
            kill(NODES[1])
        else:
            ip("-n", NODES[1], "link", "set", "hjepa0", "down")
        _, said = processes[0].communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert processes[0].returncode
    assert b"lost the others" in said
    if how == "cut off":
        ip("-n", NODES[1], "link", "set", "hjepa0", "up")
    reached = read_metrics(config.parent / "tiny" / "metrics.jsonl")[-1]["step"]
    if how == "killed":  # it stays away
        train(load_run_config(config), resume="auto", stop_after=reached + 5)
    else:
        with two_nodes(config) as processes:
            wait_for_step(processes, config, reached + 5)
    found = read_metrics(config.parent / "tiny" / "metrics.jsonl")
    alone = tiny_run(shards, tmp_path / "alone", training__epochs=60)
    train(load_run_config(alone), stop_after=len(found))
    expected = read_metrics(alone.parent / "tiny" / "metrics.jsonl")
    assert [row["proof"] for row in found] == [row["proof"] for row in expected[: len(found)]]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected[: len(found)]], rel=1e-5)
