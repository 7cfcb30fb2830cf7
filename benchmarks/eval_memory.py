"""How much memory does `hjepa-train eval` take, with a bank of 20,000 images and with one of 200,000?

    python benchmarks/eval_memory.py [--banks 20000 200000] [--probe linear,knn,ridge]

The images have a colour for each of ten classes and noise, 16x16 pixels that are read as 8x8; the encoder is a ViT of
width 64 and one block, after one step of MAE. Printed is the largest resident set of each evaluation, and what the
largest features of its table take: raw pixels, 192 numbers an image in single precision.
"""

import argparse
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.shards.tar import TarWriter

STORED, SIZE, CLASSES, PER_TAR, TEST = 16, 8, 10, 10_000, 1_000
COMMAND = [sys.executable, "-m", "hjepa_train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--probe", default="linear,knn,ridge")
    parser.add_argument("--work", type=Path, default=Path("data/benchmark/eval_memory"))
    arguments = parser.parse_args()
    work: Path = arguments.work
    for split, count in (("train", max(arguments.banks)), ("test", TEST)):
        prepare(work / "shards" / "tiny" / split, count)
    if not (work / "run" / "config.yaml").exists():
        (work / "mix.yaml").write_text(yaml.safe_dump(configuration(work)))
        subprocess.run([*COMMAND, "run", str(work / "mix.yaml"), "--stop-after", "1"], check=True)
    for bank in arguments.banks:
        (work / "run" / "evaluated.jsonl").unlink(missing_ok=True)
        command = [*COMMAND, "eval", str(work / "run"), "--bank", str(bank), "--test", str(TEST)]
        begin = time.perf_counter()
        with subprocess.Popen([*command, "--probe", arguments.probe]) as process:
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the evaluation with a bank of {bank:,} ended with status {status}")
        features = (bank + TEST) * 3 * SIZE**2 * 4
        print(
            f"bank {bank:9,}: {usage.ru_maxrss / 1024:7,.0f} MiB, of which features {features / 2**20:5,.0f} MiB; "
            f"{time.perf_counter() - begin:,.0f} s",
            flush=True,
        )


def configuration(work: Path) -> dict[str, object]:
    return {
        "run": {"name": "run", "folder": str(work)},
        "data": {
            "root": str(work / "shards"),
            "sources": [{"name": "tiny", "weight": 1}],
            "epoch_samples": 64,
            "image_size": SIZE,
        },
        "backbone": {"vit": {"width": 64, "depth": 1, "heads": 2, "patch": 4}},
        "objective": {"mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}}},
        "training": {"device": "cpu", "epochs": 1, "global_batch": 16},
        "evaluation": {"crop_share": 1, "during_every_epochs": 0},
        "logging": {"tensorboard": False, "images_every": 0},
    }


def prepare(folder: Path, count: int) -> None:
    """Tars of `count` labelled images, indexed, unless they are there."""
    if (folder / "manifest.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.Generator(np.random.Philox(key=derive_key(0, "eval memory", folder.name)))
    colours = np.random.Generator(np.random.Philox(key=derive_key(0, "colours"))).integers(60, 196, (CLASSES, 3))
    for start in range(0, count, PER_TAR):
        with (folder / f"tiny-{folder.name}-{start // PER_TAR:06}.tar").open("wb") as file:
            tar = TarWriter(file)
            for number in range(start, min(start + PER_TAR, count)):
                label = int(draw.integers(CLASSES))
                pixels = np.clip(colours[label] + draw.normal(0, 60, (STORED, STORED, 3)), 0, 255).astype(np.uint8)
                tar.add(f"{number:08}.png", png(pixels))
                tar.add(f"{number:08}.cls", b"%d" % label)
            tar.close()
    subprocess.run([sys.executable, "-m", "hjepa_shards", "index", str(folder)], check=True)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
