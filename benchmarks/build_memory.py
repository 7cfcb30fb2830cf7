"""How much memory does a build take, for ten thousand tiny images and for a million?

    python benchmarks/build_memory.py [--counts 10000 1000000]

The raw data are tars of PNGs of 8x8 pixels with labels (source webdataset, `--keep`, two workers, 10,000 samples a
shard). Printed is the largest resident set that any process of the build ever had. Memory follows the samples of a
shard, a hundred bytes each in the tasks that wait: by its default of 180 MB a shard would hold 92,000 of these.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.shards.tar import TarWriter

PER_TAR = 10_000
COMMAND = [sys.executable, "-c", "from hjepa_shards.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/memory"))
    arguments = parser.parse_args()
    for count in arguments.counts:
        raw, out = arguments.work / f"raw-{count}", arguments.work / "out"
        prepare(raw, count)
        shutil.rmtree(out, ignore_errors=True)
        build = [*COMMAND, "build", "webdataset", "--raw", str(raw), "--out", str(out), "--keep"]
        build += ["--workers", "2", "--samples-per-shard", str(PER_TAR)]
        begin = time.perf_counter()
        with subprocess.Popen(build, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
        took_s = time.perf_counter() - begin
        if status:
            raise SystemExit(f"the build of {count:,} ended with status {status}")
        print(
            f"{count:9,} images: {usage.ru_maxrss / 1024:5,.0f} MiB, {took_s:6.1f} s, {count / took_s:6,.0f} images/s"
        )


def prepare(raw: Path, count: int) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.Philox(key=derive_key(0, "tiny")))
    images = [png(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(1000)]
    for start in range(0, count, PER_TAR):
        path = raw / f"train-{start:08}.tar"
        if path.exists():
            continue
        with path.with_suffix(".part").open("wb") as file:
            tar = TarWriter(file)
            for i in range(start, min(start + PER_TAR, count)):
                tar.add(f"{i:08}.png", images[i % 1000])
                tar.add(f"{i:08}.cls", b"%d" % (i % 10))
            tar.close()
        path.with_suffix(".part").rename(path)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
