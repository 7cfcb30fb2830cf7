"""Is image quality the price of speed? The loader's crops beside Pillow's bicubic ones with antialias.

    python benchmarks/quality.py --images DIR [--cifar10 DIR]

DIR: any folder of photographs. Of each, as it is and as the build stores it (shorter side 256, JPEG 90), the same crop
of 224 (scale .8 to 1) is made both ways; printed is the mean PSNR. --cifar10: the folder of `cifar-10-batches-py`; its
crops of 32 (scale .8 to 1) are made both ways too, and their pixels' k-NN accuracy (bank 10,000, test 2,000) compared.
"""

import argparse
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hjepa_shards import AugmentationConfig, EncodeSettings
from hjepa_shards.errors import DecodeError
from hjepa_shards.images.crop import random_crops
from hjepa_shards.images.decode import crop_into, decode, fitted
from hjepa_shards.images.encode import encode
from hjepa_train.evaluation.linear_knn_probes import knn_predict

SIZE = 224
SEEDS = range(5)
JPEG_256 = EncodeSettings(pixels="jpeg", shorter_side=256)
KEEP = EncodeSettings(pixels="keep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path)
    arguments = parser.parse_args()
    for name, settings in (("shorter side 256", JPEG_256), ("as they are", KEEP)):
        found = list(ratios(sorted(path for path in arguments.images.rglob("*") if path.is_file()), settings))
        print(f"{name}: {np.mean(found):.1f} dB over {len(found):,} photographs (smallest {min(found):.1f})")
    if arguments.cifar10:
        for seed in SEEDS:
            print(f"CIFAR-10, crops of seed {seed}: k-NN " + ", ".join(neighbours(arguments.cifar10, seed)))


def ratios(paths: list[Path], settings: EncodeSettings) -> Iterator[float]:
    """PSNR in dB of each photograph's crop."""
    for index, path in enumerate(paths):
        try:
            stored = encode(path.read_bytes(), settings)
        except DecodeError:
            continue
        info = stored.info
        [crop], [shrink] = fitted(crop_of(index, info.height, info.width)[None], SIZE)
        pixels = decode(stored.data, info.colour, info.orientation, shrink)
        ours, theirs = both(stored.data, pixels, crop, SIZE, shrink if pixels.shape[0] < info.height else 1)
        error = ours - theirs
        yield float(10 * np.log10(255**2 / np.square(error).mean()))


def crop_of(index: int, height: int, width: int, seed: int = 0) -> NDArray[np.int64]:
    return random_crops(seed, np.array([index]), np.array([width]), np.array([height]), AugmentationConfig())[0]


def both(
    data: bytes, pixels: NDArray[np.uint8], crop: NDArray[np.int64], size: int, shrunk: int = 1
) -> NDArray[np.float64]:
    """[2, size, size, 3]: the loader's crop, Pillow's. data: the encoded image, for Pillow to decode itself.

    shrunk: how much smaller `pixels` are than the image.
    """
    ours = np.empty((size, size, 3), np.uint8)
    crop_into(ours, pixels, crop // shrunk)
    top, left, height, width = crop.tolist()
    with Image.open(io.BytesIO(data)) as image:
        box = (left, top, left + width, top + height)
        theirs = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.stack([ours, np.asarray(theirs)]).astype(np.float64)


def neighbours(folder: Path, seed: int) -> list[str]:
    """Accuracies of both kinds of crops."""
    crops, labels = [], []
    for name, count in (("data_batch_1", 10_000), ("test_batch", 2_000)):
        content = pickle.loads((folder / name).read_bytes(), encoding="bytes")
        images = content[b"data"][:count].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels.append(torch.tensor(content[b"labels"][:count]))
        made = []
        for index, image in enumerate(images):
            stored = encode(np.ascontiguousarray(image), EncodeSettings(pixels="png"))
            crop = crop_of(index + 10_000 * (name == "test_batch"), 32, 32, seed)
            made.append(both(stored.data, image, crop, 32).astype(np.float32))
        crops.append(torch.from_numpy(np.stack(made)).flatten(2))
    (bank, test), accuracies = crops, []
    for way, name in enumerate(("loader", "Pillow")):
        mean = bank[:, way].mean(0)
        right = knn_predict(bank[:, way] - mean, labels[0], test[:, way] - mean) == labels[1]
        accuracies.append(f"{name} {100 * right.double().mean():.2f}%")
    return accuracies


if __name__ == "__main__":
    main()
