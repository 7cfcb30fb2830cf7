"""Which library decodes fastest? Images/s on one core of each candidate, for the formats that shards hold.

    python benchmarks/decoders.py --images DIR [--rounds 5]

DIR: any folder of photographs. They are stored as originals of 500 x 375 (JPEG 95), with shorter side 256 (JPEG 90,
PNG, lossy WebP) and as PNG of 32 x 32. Candidates alternate; medians are printed, counted in processor time. A
candidate that is not installed is skipped (PyTurboJPEG wants libturbojpeg); Pillow-SIMD is measured where it is
installed instead of Pillow.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyspng
import simplejpeg
from PIL import Image

NUM = 100
FORMATS = {
    "JPEG 500 x 375": ((500, 375), "JPEG", {"quality": 95}),
    "JPEG 341 x 256": ((341, 256), "JPEG", {"quality": 90}),
    "PNG 341 x 256": ((341, 256), "PNG", {}),
    "WebP 341 x 256": ((341, 256), "WEBP", {"quality": 90}),
    "PNG 32 x 32": ((32, 32), "PNG", {}),
}
Decode = Callable[[bytes], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    photographs = list(itertools.islice(opened(arguments.images), NUM))
    if not photographs:
        raise SystemExit(f"{arguments.images}: photographs expected, none found")
    names = list(candidates("JPEG")) + ["pyspng"]
    print(f"{'images/s a core':16}" + "".join(f"{name:>14}" for name in names))
    for title, (size, kind, options) in FORMATS.items():
        stored = [
            encoded(photograph.resize(size, Image.Resampling.LANCZOS), kind, options) for photograph in photographs
        ]
        found = measured(stored, candidates(kind), arguments.rounds)
        print(f"{title:16}" + "".join(f"{found[name]:14,.0f}" if name in found else f"{'':14}" for name in names))


def opened(folder: Path) -> Any:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(OSError), Image.open(path) as image:
            yield image.convert("RGB")


def encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def candidates(kind: str) -> dict[str, Decode]:
    found: dict[str, Decode] = {"OpenCV": of_opencv, "Pillow": of_pillow}
    if kind == "JPEG":
        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
        with contextlib.suppress(ImportError, RuntimeError):
            import turbojpeg

            turbo = turbojpeg.TurboJPEG()
            found["PyTurboJPEG"] = lambda data: turbo.decode(data, pixel_format=turbojpeg.TJPF_RGB)
    if kind == "PNG":
        found["pyspng"] = lambda data: pyspng.load(data, "RGB")
    with contextlib.suppress(ImportError):
        import torch
        from torchvision.io import ImageReadMode, decode_image

        torch.set_num_threads(1)
        found["torchvision"] = lambda data: decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
        )
    return found


def of_opencv(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def of_pillow(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def measured(stored: Sequence[bytes], decoders: dict[str, Decode], rounds: int) -> dict[str, float]:
    """Median images a second of processor time."""
    speeds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds + 1):
        for name, decode in decoders.items():
            began = time.process_time()
            for data in stored:
                decode(data)
            speeds[name].append(len(stored) / (time.process_time() - began))
    return {name: statistics.median(found[1:]) for name, found in speeds.items()}


if __name__ == "__main__":
    main()
