"""How long until the first batch when a run continues: at 0, 50, 99% of an epoch and after 100, beside a cold start?

    python benchmarks/resume_time.py [--images 1281167] [--rounds 5]

As many tiny PNGs as ImageNet has images are built into shards once (some minutes). Each measurement is a process of its
own, from the mixture's YAML to the first batch of 256, and they alternate; printed are medians and their ratios to the
cold start. Then a manifest of a billion samples in 125,000 shards is written, read and planned from at 50%.
"""

import argparse
import dataclasses
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from build_memory import prepare

from hjepa_shards import BuildOptions, DataConfig, EncodeSettings, Mixture, build, load_mixture, open_loader, plan_state
from hjepa_shards.shards.manifest import FILE_NAME, load_manifest, manifest_bytes

BATCH = 256
PER_SHARD = 2048
BILLION_SHARDS, BILLION_PER_SHARD = 125_000, 8_000
PLACES = {"cold start": None, "0%": 0.0, "50%": 0.5, "99%": 0.99, "after 100 epochs": 100.0}
"""Epochs already done; None: no state."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/resume_time"))
    parser.add_argument("--measure", nargs=2, metavar=("ROOT", "EPOCHS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        root, epochs = arguments.measure
        print(json.dumps(measured(Path(root), json.loads(epochs))))
        return
    root = built(arguments.work, arguments.images)
    found: dict[str, list[float]] = {name: [] for name in PLACES}
    for _ in range(arguments.rounds):
        for name, epochs in PLACES.items():
            found[name].append(in_a_process(root, epochs)["first_batch_s"])
    cold_s = statistics.median(found["cold start"])
    for name, took in found.items():
        median_s = statistics.median(took)
        print(f"{name:17} {median_s:6.3f} s to the first batch, {median_s / cold_s:.2f}x")
    billion = in_a_process(a_billion(root, arguments.work), 0.5)
    print(f"a billion samples: {billion['planned_s']:.2f} s from the YAML to the plan at 50%, {billion['mib']:.0f} MiB")


def built(work: Path, images: int) -> Path:
    """The root of one source with as many images, made once."""
    root = work / f"shards-{images}"
    options = BuildOptions(settings=EncodeSettings(pixels="keep"), samples_per_shard=PER_SHARD, workers=2)
    if not (root / "webdataset" / "train" / FILE_NAME).exists():
        prepare(work / "raw", images)
        build("webdataset", raw=work / "raw", out=root, options=options)
        shutil.rmtree(work / "raw")
    return root


def a_billion(root: Path, work: Path) -> Path:
    """A root with a manifest alone; nothing else of it exists."""
    manifest = load_manifest(root / "webdataset" / "train")
    digests = [f"{shard:064x}" for shard in range(BILLION_SHARDS)]
    manifest = dataclasses.replace(
        manifest,
        shard_samples=np.full(BILLION_SHARDS, BILLION_PER_SHARD, np.int64),
        shard_bytes=np.full(BILLION_SHARDS, 180 << 20, np.int64),
        shard_sha256=digests,
        index_sha256=digests,
        keys_digest=[digest[:32] for digest in digests],
    )
    folder = work / "billion" / "webdataset" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_bytes(manifest_bytes(manifest))
    return work / "billion"


def in_a_process(root: Path, epochs: float | None) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(root), json.dumps(epochs)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def measured(root: Path, epochs: float | None) -> dict[str, float]:
    state = None if epochs is None else state_at(mixture_of(root), epochs)
    began = time.perf_counter()
    mixture = mixture_of(root)
    plan = mixture.make_plan(0)
    position = 0 if state is None else int(state["position"])
    plan.samples(position, position + BATCH)
    found = {"planned_s": time.perf_counter() - began}
    found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if list((root / "webdataset" / "train").glob("*.tar")):
        began = time.perf_counter()
        with open_loader(mixture_of(root), seed=0, global_batch=BATCH, state=state) as loader:
            next(loader)
            found["first_batch_s"] = time.perf_counter() - began
    return found


def mixture_of(root: Path) -> Mixture:
    config = {"root": str(root), "strategy": "concat", "sources": [{"name": "webdataset"}], "image_size": 32}
    return load_mixture(DataConfig.model_validate(config), "benchmark")


def state_at(mixture: Mixture, epochs: float) -> dict[str, Any]:
    position = -(-int(epochs * mixture.epoch_samples) // BATCH) * BATCH  # not across the end of an epoch
    return plan_state(mixture.make_plan(0), position, 0, {})


if __name__ == "__main__":
    main()
