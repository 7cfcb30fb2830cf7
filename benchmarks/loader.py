"""How near is the loader to the decoder? Images/s beside raw libjpeg-turbo decode of the same bytes, in one run.

    python benchmarks/loader.py --images DIR [--threads 2]

DIR: any folder of photographs. They are built into shards (shorter side 256, JPEG 90) below --out; the loader makes
crops of 224 (scale .8 to 1) with checksums on. Rounds alternate; medians and their ratio are printed.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simplejpeg

from hjepa_shards import BuildOptions, DataConfig, EncodeSettings, Mixture, build, load_mixture, open_loader
from hjepa_shards.reader import SampleReader
from hjepa_shards.store import LocalStore

IMAGES = 2048
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings = EncodeSettings(pixels="jpeg", shorter_side=256)
    build("folder", raw=arguments.images, out=arguments.out, options=BuildOptions(settings=settings))
    config = DataConfig.model_validate(
        {
            "root": str(arguments.out),
            "strategy": "concat",
            "sources": [{"name": "folder"}],
            "threads": arguments.threads,
        }
    )
    mixture = load_mixture(config, "benchmark")
    encoded = encoded_images(mixture)
    loader_speeds, decode_speeds = [], []
    for _ in range(arguments.rounds):
        decode_speeds.append(decode_speed(encoded, arguments.threads))
        loader_speeds.append(loader_speed(mixture))
    loader, decoder = statistics.median(loader_speeds), statistics.median(decode_speeds)
    print(f"{len(encoded)} images, {arguments.threads} threads: loader {loader:,.0f}/s, raw decode {decoder:,.0f}/s")
    print(f"loader / raw decode: {loader / decoder:.0%}")


def encoded_images(mixture: Mixture) -> list[bytes]:
    reader = SampleReader(LocalStore(Path(mixture.places[0]), mixture.manifests[0]), mixture.manifests[0])
    return [reader.image_bytes(reader.locate(i)) for i in range(mixture.manifests[0].num_samples)]


def decode_speed(encoded: list[bytes], threads: int) -> float:
    work = [encoded[i % len(encoded)] for i in range(IMAGES)]
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(lambda part: [simplejpeg.decode_jpeg(data) for data in part], chunks(work)))
        return IMAGES / (time.perf_counter() - began)


def chunks(work: list[bytes]) -> list[list[bytes]]:
    return [work[start : start + BATCH] for start in range(0, len(work), BATCH)]


def loader_speed(mixture: Mixture) -> float:
    with open_loader(mixture, seed=0, global_batch=BATCH) as loader:
        for _ in range(4):
            next(loader)
        began = time.perf_counter()
        for _ in range(IMAGES // BATCH):
            next(loader)
        return IMAGES / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
