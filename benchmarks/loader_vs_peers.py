"""Images a second of the loader and of its peers: the same files, crops and cores, in turn.

    python benchmarks/loader_vs_peers.py --images DIR [--cifar10 DIR] [--rounds 3] [--peers webdataset-pillow ...]

--images: any folder of photographs, to be stored with shorter side 256 (JPEG 90) and as they are. --cifar10: the folder
of `cifar-10-batches-py`, to be stored as PNG. Each of the three is repeated to 4,608 files or more; each peer gets an
environment and a copy of the data in its own format below --work (PyTorch several times over: some gigabytes). A peer
that cannot be installed, or reads no PNG, is named and skipped. Peers alternate; medians are compared, and go into
benchmarks/results.
"""

import argparse
import datetime
import io
import json
import os
import pickle
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peers import PEERS
from PIL import Image

from hjepa_shards import EncodeSettings
from hjepa_shards.errors import DecodeError
from hjepa_shards.images.encode import encode

HERE = Path(__file__).parent
FILES = 4608
PATIENCE_S = 300


@dataclass(frozen=True)
class Case:
    name: str
    stored: Callable[[argparse.Namespace], Iterator[bytes]]
    suffix: str
    size: int
    """Of a crop."""
    images: int
    """To be timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/peers"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    pythons = {
        name: python for name in {"hjepa": None, **dict.fromkeys(arguments.peers)} if (python := python_of(name, work))
    }
    found: dict[str, dict[str, float]] = {}
    for case in CASES if arguments.cifar10 else CASES[:-1]:
        folder = work / case.name.replace(" ", "-")
        write_files(case, arguments, folder / "images")
        speeds = measured(case, folder, pythons, arguments.rounds, arguments.workers)
        found[case.name] = speed = {name: statistics.median(took) for name, took in speeds.items() if took}
        print(f"\n{case.name}, {arguments.workers} workers: images/s, and how much faster this loader is")
        for name in sorted(speed, key=lambda name: -speed[name]):
            print(f"  {name:24} {speed[name]:8,.0f}  {speed['hjepa'] / speed[name]:5.2f}x")
    result = HERE / "results" / f"loader_vs_peers_cpu_{datetime.date.today()}.json"
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result.write_text(json.dumps(machine | {"workers": arguments.workers, "images_per_s": found}, indent=1) + "\n")


def python_of(name: str, work: Path) -> Path | None:
    """The interpreter of a peer's environment, made where it is not there; None where it cannot be made."""
    packages = PEERS[name].packages
    if not packages:
        return Path(sys.executable)
    folder = work / "environments" / "-".join(package.partition("!")[0] for package in packages)
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        uv = Path(sys.executable).with_name("uv")
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [uv, "venv", "-q", "--python", sys.executable, folder],
            [uv, "pip", "install", "-q", "--python", python, *packages],
        ):
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                print(f"{name}: cannot be installed: {ran.stderr.strip().splitlines()[-1]}")
                return None
        (folder / ".ready").touch()
    return python


def jpegs(settings: EncodeSettings) -> Callable[[argparse.Namespace], Iterator[bytes]]:
    def stored(arguments: argparse.Namespace) -> Iterator[bytes]:
        for path in sorted(path for path in arguments.images.rglob("*") if path.is_file()):
            try:
                data = encode(path.read_bytes(), settings).data
            except DecodeError:
                continue
            with Image.open(io.BytesIO(data)) as image:
                if image.format == "JPEG" and image.mode == "RGB":
                    yield data

    return stored


def cifar10(arguments: argparse.Namespace) -> Iterator[bytes]:
    content = pickle.loads((arguments.cifar10 / "data_batch_1").read_bytes(), encoding="bytes")
    for pixels in content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        yield buffer.getvalue()


CASES = (
    Case("shorter side 256", jpegs(EncodeSettings(pixels="jpeg", shorter_side=256)), ".jpg", 224, 4096),
    Case("as they are", jpegs(EncodeSettings(pixels="keep")), ".jpg", 224, 4096),
    Case("CIFAR-10 PNG", cifar10, ".png", 32, 32768),
)


def write_files(case: Case, arguments: argparse.Namespace, folder: Path) -> None:
    """FILES images or more in one folder, over and over the same."""
    if folder.exists():
        return
    stored = list(case.stored(arguments))
    if not stored:
        raise SystemExit(f"{arguments.images}: JPEGs expected, none found")
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "one").mkdir(parents=True)
    for number in range(max(FILES, len(stored))):
        (part / "one" / f"{number:06}{case.suffix}").write_bytes(stored[number % len(stored)])
    part.rename(folder)


def measured(case: Case, folder: Path, pythons: dict[str, Path], rounds: int, workers: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in pythons}
    failed = set()
    for name, python in pythons.items():
        data = folder / name
        if not (folder / f"{name}.ready").exists():
            shutil.rmtree(data, ignore_errors=True)
            if run(python, "prepare", name, folder / "images", data) is None:
                failed.add(name)
                continue
            (folder / f"{name}.ready").touch()
    for number in range(rounds):
        for name, python in pythons.items():
            if name in failed:
                continue
            options = ["--size", case.size, "--workers", workers, "--images", case.images]
            said = run(python, "measure", name, folder / name, *options)
            if said is None:
                failed.add(name)
                continue
            speeds[name].append(json.loads(said.splitlines()[-1])["images_per_s"])
            print(f"round {number + 1}: {name:24} {speeds[name][-1]:8,.0f} images/s", flush=True)
    return speeds


def run(python: Path, *arguments: object) -> str | None:
    """What it prints; None, and why, where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(python), str(HERE / "peers.py"), *map(str, arguments)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"{arguments[1]}: {arguments[0]} takes more than {PATIENCE_S} s, skipped")
        return None
    if ran.returncode:
        print(f"{arguments[1]}: {arguments[0]} fails: {ran.stderr.strip().splitlines()[-1]}, skipped")
        return None
    return ran.stdout


if __name__ == "__main__":
    main()
