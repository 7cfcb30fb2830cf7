"""A real Ray cluster of two nodes on this machine writes the bytes that one process writes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import BuildMismatch, InputError
from tests.hjepa_shards.building.test_build import files_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ray")

FOREIGN = """
import importlib.abc, sys

class Foreign(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "hjepa_shards.building.shard_tasks":
            import numpy
            import hjepa_shards.images.encode as encode
            encode._canary_images = lambda: [numpy.zeros((4, 4, 3), numpy.uint8)]

sys.meta_path.insert(0, Foreign())
"""
"""A sitecustomize.py: processes of the node that has it encode the canary otherwise."""

NODES = """
import sys, socket
from ray.cluster_utils import Cluster

def free_ports():
    names = ("metrics_agent_port", "runtime_env_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return dict(zip(names, ports))

small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False, **free_ports()})
cluster.add_node(**small, **free_ports())
print(cluster.address, flush=True)
for line in sys.stdin:
    node = cluster.add_node(**small, **free_ports(), env_vars={"PYTHONPATH": line.strip()})
    print("added", flush=True)
    sys.stdin.readline()
    cluster.remove_node(node)
    print("removed", flush=True)
cluster.shutdown()
"""


@dataclass
class Nodes:
    """Two nodes, and pipes to the process that started them."""

    address: str
    to: IO[str]
    back: IO[str]

    def say(self, line: str) -> None:
        print(line, file=self.to, flush=True)
        assert self.back.readline()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_agent_register_timeout_ms": "300000",
    }
    with subprocess.Popen(
        [sys.executable, "-c", NODES],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        lines = (line.strip() for line in process.stdout)
        address = next((line for line in lines if line[:1].isdigit()), "")
        assert address, "the cluster does not start"
        try:
            yield Nodes(address, process.stdin, process.stdout)
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def options(address: str | None) -> BuildOptions:
    return BuildOptions(samples_per_shard=48, limit=200, cluster=address)


def on_cluster(nodes: Nodes, out: Path) -> None:
    build("digits", raw=None, out=out, splits=("train",), options=options(nodes.address))


def test_two_nodes_write_the_same_bytes(nodes: Nodes, shards: Path, tmp_path: Path) -> None:
    on_cluster(nodes, tmp_path)
    assert files_of(tmp_path / "digits" / "train") == files_of(shards / "digits" / "train")


def test_a_build_killed_on_a_cluster_continues_to_the_same_bytes(nodes: Nodes, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "train"
    command = [sys.executable, "-c", "from hjepa_shards.cli import main; main()"] + (
        f"build digits --out {tmp_path} --split train --limit 200 --samples-per-shard 48 --cluster {nodes.address}"
    ).split()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob(".journal/digits*.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    on_cluster(nodes, tmp_path)
    assert files_of(folder) == files_of(shards / "digits" / "train")


def test_a_node_with_another_encoder_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FOREIGN)
    nodes.say(str(tmp_path))
    try:
        with pytest.raises(BuildMismatch, match=r"node .*: this worker encodes as .*canary"):
            on_cluster(nodes, tmp_path / "out")
        assert not list((tmp_path / "out").rglob("*.tar"))
    finally:
        nodes.say("")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_where_no_cluster_answers_is_said_at_once(tmp_path: Path, address: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        build("digits", raw=None, out=tmp_path, splits=("train",), options=options(address))
    assert time.monotonic() - began < 60
