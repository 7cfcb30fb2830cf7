"""Half an epoch, a kill, the other half: seconds until it continues, samples that come twice, samples that never come.

    python benchmarks/resume_vs_peers.py --images DIR [--peers webdataset torchdata ...]

DIR: a folder with one folder of small images, some thousands (`loader_vs_peers.py --cifar10` leaves one). Each peer
reads them on two ranks, saves as it offers to when half are read, and continues in new processes: on two ranks again,
on one, and on four. A peer without a state begins its epoch again; one that refuses another number of ranks is named.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from loader_vs_peers import HERE, python_of

RANKS = 2
PATIENCE_S = 60
THEN = (2, 1, 4)
PACKAGES = {
    "hjepa": "hjepa",
    "webdataset": "webdataset-pillow",
    "torchdata": "imagefolder",
    "litdata": "litdata",
    "streaming": "streaming",
    "energon": "energon",
}
"""Peer -> the one of peers.py that prepares its data."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/peers"))
    parser.add_argument("--peers", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    arguments = parser.parse_args()
    num = sum(1 for path in arguments.images.glob("*/*.*"))
    work = arguments.work.resolve()
    print(f"{num:,} samples; saved at half of an epoch on {RANKS} ranks")
    print(f"{'':12} {'then ranks':>10} {'first batch':>12} {'twice':>7} {'never':>7}")
    for peer in arguments.peers:
        python = python_of(PACKAGES[peer], work)
        folder = work / "resume" / peer
        if python is None or not prepared(peer, python, arguments.images, folder):
            continue
        began, why = ranks_of(peer, python, folder, RANKS, take=num // 2 // RANKS)
        if began is None:
            print(f"{peer:12} fails: {why}")
            continue
        for world in THEN:
            then, why = ranks_of(peer, python, folder, world, resume=True)
            if then is None:
                print(f"{peer:12} {world:10} refused: {why}")
                continue
            seen = collections.Counter(number for part in (*began, *then) for number in part["numbers"])
            twice, never = sum(count - 1 for count in seen.values()), num - len(seen)
            first_s = max(part["first_batch_s"] or 0 for part in then)
            print(f"{peer:12} {world:10} {first_s:10.2f} s {twice:7,} {never:7,}", flush=True)


def prepared(peer: str, python: Path, images: Path, folder: Path) -> bool:
    if folder.exists():
        return True
    command = [python, HERE / "peers.py", "prepare", PACKAGES[peer], images.resolve(), folder / "data"]
    folder.mkdir(parents=True)
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        print(f"{peer:12} cannot be prepared: {ran.stderr.strip().splitlines()[-1]}")
        shutil.rmtree(folder)
    return not ran.returncode


def ranks_of(
    peer: str, python: Path, folder: Path, world: int, take: int | None = None, resume: bool = False
) -> tuple[list[dict[str, Any]] | None, str]:
    """(what each rank says, '') or (None, why one of them failed)"""
    running = []
    for rank in range(world):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(29_500 + world),
            **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
            **{name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        }
        # ranks that were not there before take the state of one that was
        state = ["--resume", folder / f"{rank % RANKS}.state"] if resume else ["--take", str(take)]
        saved = folder / ("after.state" if resume else f"{rank}.state")
        command = [python, HERE / "resume_peers.py", peer, folder / "data", "--state", saved, *state]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    found, why = [], ""
    for process in running:
        try:
            said, errors = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            why = why or f"no end after {PATIENCE_S} s"
            break
        if process.returncode:
            why = why or (errors.strip().splitlines() or ["no word"])[-1]
            break
        found.append(json.loads(said.splitlines()[-1]))
    for process in running:
        process.kill()
        process.communicate()
    return (None, why) if why else (found, "")


if __name__ == "__main__":
    main()
