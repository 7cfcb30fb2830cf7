"""The same shard tasks on the machines of a Ray cluster (`pip install 'hjepa[cluster]'`).

Nodes need this package, the raw data and the folder of the shards (or its URL) under the same names; that, and the
encoder, is checked on every node before the first task and in every process before its own. A task of a lost node
runs again elsewhere: it is the same function of the same slice.
"""

import contextlib
import logging
import platform
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from types import ModuleType
from typing import Any

from hjepa_shards.building.build_plan import PLAN
from hjepa_shards.building.shard_tasks import Job, Task
from hjepa_shards.building.shard_writer import Report
from hjepa_shards.errors import DecodeError, InputError, ShardError

_TASKS_A_CPU = 2
_NODE_PATIENCE_S = 120
_CONNECT_S = 10


def run_on_cluster(job: Job, tasks: Iterable[Task], report: Report, address: str) -> None:
    """Run the tasks on the Ray cluster at `address` (`auto`, `host:6379` or `ray://host:10001`)."""
    left = iter(tasks)
    first = next(left, None)
    if first is None:
        return
    with _connected(address) as ray:
        shared = ray.put(job)
        _look_at_nodes(ray, shared, first, job.target.read(PLAN))
        remote = ray.remote(num_cpus=1)(_run)
        left = chain([first], left)
        most = max(1, int(_TASKS_A_CPU * ray.cluster_resources().get("CPU", 1)))
        waiting = [remote.remote(shared, task) for task in islice(left, most)]
        while waiting:
            ended, waiting = ray.wait(waiting)
            for reference in ended:
                report(*_result(ray, reference))
            waiting += [remote.remote(shared, task) for task in islice(left, len(ended))]


@contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    try:
        import ray
    except ImportError as error:
        raise InputError("--cluster: Ray expected, it is not installed; pip install 'hjepa[cluster]'") from error
    _require_listener(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, and what gRPC raises
        raise InputError(
            f"--cluster {address}: no Ray cluster answers there ({' '.join(str(error).split())[:200]}); "
            "`ray start --head` starts one"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """InputError where no machine listens at `host:port`: Ray would keep trying for many minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto` and the like: Ray knows at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--cluster {address}: no Ray cluster answers there ({error}); `ray start --head` starts one"
        ) from error


def _look_at_nodes(ray: ModuleType, shared: Any, first: Task, plan: bytes) -> None:
    """InputError naming the node that lacks something."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0)(_look)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    looks = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(shared, first, plan)
        for node in nodes
    ]
    ended, silent = ray.wait(looks, num_returns=len(looks), timeout=_NODE_PATIENCE_S)
    for look in ended:
        _result(ray, look)
    if silent:
        raise InputError(f"--cluster: {len(silent)} of {len(nodes)} nodes do not answer within {_NODE_PATIENCE_S} s")


def _result(ray: ModuleType, reference: Any) -> Any:
    """What a task returned; its own error, in one line, where it failed."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | ShardError):
            raise type(error.cause)(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        raise InputError(
            f"--cluster: {' '.join(str(error).split())[:300]}; is hjepa installed on every node? then run the same "
            "command again"
        ) from error


# ---- on the nodes


def _run(job: Job, task: Task) -> tuple[int, int]:
    """One shard. Samples and raw bytes."""
    done = [0, 0]

    def report(num_samples: int, num_bytes: int) -> None:
        done[0] += num_samples
        done[1] += num_bytes

    with _named():
        job.require_same_build()
        job.run(task, report)
    return done[0], done[1]


def _look(job: Job, first: Task, plan: bytes) -> None:
    """Is everything here that a task needs?"""
    with _named():
        job.require_same_build()
        try:
            found = job.target.read(PLAN)
        except (FileNotFoundError, InputError):
            found = None
        if found != plan:
            raise InputError(
                f"{job.target.where}: the plan of this build expected, {'another' if found else 'none'} found; give a "
                "folder that all nodes share, or a URL, with --out"
            )
        try:
            with contextlib.suppress(DecodeError):
                _, sample = next(first.samples.keyed())
                job.raw.read(sample)
        except (InputError, OSError) as error:
            raise InputError(f"{error}; the raw data must be there under the same name on all nodes") from error


@contextmanager
def _named() -> Iterator[None]:
    """Errors say on which machine."""
    try:
        yield
    except (InputError, ShardError) as error:
        raise type(error)(f"node {platform.node()}: {error}") from error
