"""How near is the loader to the decoder? Images/s of `hjepa-shards bench` on a folder of photographs.

    python benchmarks/loader.py --images DIR [--threads 2]

DIR: any folder of photographs. They are built into shards (shorter side 256, JPEG 90) below --out; the loader makes
crops of 224 (scale .8 to 1) with checksums on. Rounds alternate; medians and their ratio are printed.
"""

import argparse
from pathlib import Path

from hjepa_shards import BuildOptions, DataConfig, EncodeSettings, build, load_mixture
from hjepa_shards.loader.bench import bench_loader


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
    found = bench_loader(load_mixture(config, "benchmark"), rounds=arguments.rounds)
    print(f"{found.threads} threads: loader {found.loader:,.0f}/s, decoder alone {found.decoder:,.0f}/s")
    print(f"loader / decoder: {found.share:.0%}; {found.limit}")


if __name__ == "__main__":
    main()
