"""Are builds of CIFAR-10 byte-identical, whatever makes them? Workers, parts, a Ray cluster of two nodes, kill -9.

    python benchmarks/build_identity.py --raw DIR [--kills 20]

DIR: the folder of cifar-10-batches-py. Every way builds the train split from nothing; one build is killed with -9,
workers and all, at `kills` random moments and started again each time. Compared is the sha256 of every file.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hjepa_shards import BuildOptions, build

PER_SHARD = 1024
COMMAND = [sys.executable, "-c", "from hjepa_shards.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/identity"))
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    raw, work, kills = arguments.raw, arguments.work, arguments.kills
    ways: dict[str, Callable[[Path], None]] = {
        "1 worker": lambda out: with_workers(raw, out, 1),
        "2 workers": lambda out: with_workers(raw, out, 2),
        "4 workers": lambda out: with_workers(raw, out, 4),
        "3 parts and merge": lambda out: in_parts(raw, out, 3),
        "a Ray cluster of 2 nodes": lambda out: on_two_nodes(raw, out),
        f"killed {kills} times": lambda out: killed(raw, out, kills),
    }
    expected: dict[str, str] = {}
    for name, way in ways.items():
        out = work / name.replace(" ", "-")
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        way(out)
        took_s = time.perf_counter() - begin
        found = digests(out)
        expected = expected or found
        print(f"{name:30s} {took_s:6.1f} s  {len(found)} files, {'equal' if found == expected else 'DIFFERENT'}")
        if found != expected:
            raise SystemExit(1)


def with_workers(raw: Path, out: Path, workers: int) -> None:
    build(
        "cifar10",
        raw=raw,
        out=out,
        splits=("train",),
        options=BuildOptions(samples_per_shard=PER_SHARD, workers=workers),
    )


def in_parts(raw: Path, out: Path, num_parts: int) -> None:
    for part in range(num_parts, 0, -1):
        subprocess.run(command(raw, out, "--part", f"{part}/{num_parts}"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*COMMAND, "merge", str(out)], check=True, stdout=subprocess.DEVNULL)


def on_two_nodes(raw: Path, out: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        options = BuildOptions(samples_per_shard=PER_SHARD, cluster=cluster.address)
        build("cifar10", raw=raw, out=out, splits=("train",), options=options)
    finally:
        cluster.shutdown()


def killed(raw: Path, out: Path, kills: int) -> None:
    draw = random.Random(0)
    for _ in range(kills):
        with subprocess.Popen(
            command(raw, out, "--workers", "2"), stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            time.sleep(draw.uniform(0.5, 5))
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(command(raw, out, "--workers", "2"), check=True, stdout=subprocess.DEVNULL)


def command(raw: Path, out: Path, *options: str) -> list[str]:
    common = ["--raw", str(raw), "--out", str(out), "--split", "train", "--samples-per-shard", str(PER_SHARD)]
    return [*COMMAND, "build", "cifar10", *common, *options]


def digests(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in (".lock", "raw.json")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


if __name__ == "__main__":
    main()
