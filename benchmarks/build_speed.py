"""How fast is a build? Beside a webdataset.ShardWriter loop with Pillow, and, for `--pixels keep`, beside cp.

    python benchmarks/build_speed.py --images DIR [--count 4000] [--rounds 3]

DIR: any folder of photographs; keyed crops of them become `count` JPEGs of 500x375 (quality 92, about 60 kB). Each
round runs, in turn: the loop (open, convert, resize to shorter side 256, save at quality 90, write) in one process
and spread over two, with Lanczos and with bicubic; our build with two workers. Then, on eight hard links of each file
(a copy is over too soon otherwise): cp -r, and our build with keep. Wall time of everything, the start of processes
and a final sync included; shards of 512 images, and of 2,048 (100 MB) where they are kept. Medians and ratios are
printed, all times written to --json.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from hjepa_shards import BuildOptions, EncodeSettings, build
from hjepa_shards.base.keyed_random import derive_key

SIZE = (500, 375)
SHORTER_SIDE, QUALITY = 256, 90
PER_SHARD, KEPT_PER_SHARD = 512, 2048
LINKS = 8
COPY, KEEP = "cp -r", "hjepa-shards build --keep, 2 workers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/build"))
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    raw = arguments.work / f"raw-{arguments.count}"
    prepare(arguments.images, raw, arguments.count)
    many = arguments.work / f"many-{arguments.count}"
    link(raw, many)
    out = arguments.work / "out"
    lanczos, bicubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    contestants: dict[str, Callable[[], object]] = {
        "ShardWriter + Pillow Lanczos, 1 process": lambda: shard_writer_loop(raw, out, lanczos, 1),
        "ShardWriter + Pillow Lanczos, 2 processes": lambda: shard_writer_loop(raw, out, lanczos, 2),
        "ShardWriter + Pillow bicubic, 1 process": lambda: shard_writer_loop(raw, out, bicubic, 1),
        "ShardWriter + Pillow bicubic, 2 processes": lambda: shard_writer_loop(raw, out, bicubic, 2),
        "hjepa-shards build, 2 workers": lambda: our_build(
            raw, out, EncodeSettings(pixels="jpeg", shorter_side=SHORTER_SIDE, quality=QUALITY), PER_SHARD
        ),
        COPY: lambda: subprocess.run(["cp", "-r", str(many), str(out)], check=True),
        KEEP: lambda: our_build(many, out, EncodeSettings(pixels="keep"), KEPT_PER_SHARD),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, run in contestants.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            begin = time.perf_counter()
            run()
            os.sync()
            seconds[name].append(time.perf_counter() - begin)
    report(seconds, raw, arguments.json)


def prepare(images: Path, raw: Path, count: int) -> None:
    """`count` JPEGs of 500x375: a keyed crop of a photograph each."""
    if len(list(raw.glob("*.jpg"))) == count:
        return
    raw.mkdir(parents=True, exist_ok=True)
    photographs = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for i in range(count):
        generator = np.random.Generator(np.random.Philox(key=derive_key(0, "crop", i)))
        with Image.open(photographs[i % len(photographs)]) as image:
            width = int(image.width * generator.uniform(0.7, 1))
            height = min(image.height, round(width * SIZE[1] / SIZE[0]))
            left = int(generator.integers(0, image.width - width + 1))
            top = int(generator.integers(0, image.height - height + 1))
            crop = image.convert("RGB").resize(SIZE, box=(left, top, left + width, top + height))
        crop.save(raw / f"{i:06}.jpg", quality=92)


def link(raw: Path, many: Path) -> None:
    many.mkdir(exist_ok=True)
    for path in raw.glob("*.jpg"):
        for i in range(LINKS):
            link = many / f"{path.stem}-{i}.jpg"
            if not link.exists():
                link.hardlink_to(path)


def shard_writer_loop(raw: Path, out: Path, resample: Image.Resampling, processes: int) -> None:
    """What people write today."""
    out.mkdir(parents=True)
    paths = sorted(raw.glob("*.jpg"))
    parts = [(paths[part::processes], out / str(part), resample) for part in range(processes)]
    if processes == 1:
        write_part(*parts[0])
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(write_part, parts)


def write_part(paths: list[Path], out: Path, resample: Image.Resampling) -> None:
    out.mkdir()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=PER_SHARD, verbose=0) as writer:
        for path in paths:
            with Image.open(path) as image:
                scale = SHORTER_SIDE / min(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                buffer = io.BytesIO()
                image.convert("RGB").resize(size, resample).save(buffer, "JPEG", quality=QUALITY)
            writer.write({"__key__": path.stem, "jpg": buffer.getvalue()})


def our_build(raw: Path, out: Path, settings: EncodeSettings, per_shard: int) -> None:
    build("folder", raw=raw, out=out, options=BuildOptions(settings=settings, samples_per_shard=per_shard, workers=2))


def report(seconds: dict[str, list[float]], raw: Path, path: Path | None) -> None:
    sizes = [file.stat().st_size for file in raw.glob("*.jpg")]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        times = LINKS if name in (COPY, KEEP) else 1
        rate, speed = times * len(sizes) / median, times * sum(sizes) / median / 1e6
        print(f"{name:44s} {rate:8,.0f} images/s  {speed:7,.0f} MB/s read")
    ours = medians["hjepa-shards build, 2 workers"]
    for name, median in medians.items():
        if name.startswith("ShardWriter"):
            print(f"build / {name}: {median / ours:.2f}x")
    print(f"keep / cp: {medians[COPY] / medians[KEEP]:.0%}")
    if path is not None:
        path.write_text(json.dumps({"count": len(sizes), "bytes": sum(sizes), "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
