"""A few images of every source, in the layout in which it is published."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hjepa_shards.building.build import BuildOptions, build
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred
from tests.hjepa_shards.sources.published import test_cifar, test_coco, test_places365, test_stl10

SAMPLES_PER_SHARD = 2


@dataclass(frozen=True)
class RawSet:
    """What `build` takes."""

    raw: Path | None
    split: str
    classes: Path | None = None


def cifar10(folder: Path) -> RawSet:
    test_cifar.make_pickles(folder / "cifar-10-batches-py", ["test_batch"], "labels")
    return RawSet(folder, "test")


def cifar100(folder: Path) -> RawSet:
    pixels = test_cifar.made_pixels(4, 0)
    labels = np.array([[11, 3], [11, 0], [0, 9], [19, 99]], np.uint8)
    return RawSet(put(folder, {"cifar-100-binary/test.bin": np.hstack([labels, pixels]).tobytes()}), "test")


def stl10(folder: Path) -> RawSet:
    folder.mkdir()
    test_stl10.make(folder / "stl10_binary")
    return RawSet(folder, "train")


def imagenet(folder: Path) -> RawSet:
    images = {f"train/{synset}/{synset}_{i}.JPEG": jpeg(i) for synset in ("n01440764", "n01443537") for i in range(3)}
    put(folder, images | {"classes.txt": b"n01440764\nn01443537\n"})
    return RawSet(folder, "train", folder / "classes.txt")


def places365(folder: Path) -> RawSet:
    return RawSet(test_places365.unpacked(folder, "large", "val"), "val")


def coco(folder: Path) -> RawSet:
    return RawSet(test_coco.raw_of(folder, test_coco.annotations()), "val")


def own_folder(folder: Path) -> RawSet:
    return RawSet(put(folder, {f"{'ab'[i % 2]}/ü {i}.v1.jpg": jpeg(i) for i in range(5)}), "train")


def webdataset(folder: Path) -> RawSet:
    files = {f"{i}.{extension}": data for i in range(5) for extension, data in (("jpg", jpeg(i)), ("cls", b"%d" % i))}
    return RawSet(put(folder, {"0.tar": tarred(files)}), "train")


def image_text(folder: Path) -> RawSet:
    lines = "".join(json.dumps({"image": f"{i}.jpg", "caption": f"<b>{i}</b>\n"}) + "\n" for i in range(5))
    return RawSet(put(folder, {"list.jsonl": lines.encode()} | {f"{i}.jpg": jpeg(i) for i in range(5)}), "train")


def offline(folder: Path) -> RawSet:
    return RawSet(None, "train")


RAW_SETS: dict[str, Callable[[Path], RawSet]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "imagenet": imagenet,
    "imagenet100": imagenet,
    "places365": places365,
    "coco": coco,
    "folder": own_folder,
    "webdataset": webdataset,
    "image-text": image_text,
    "digits": offline,
    "photos": offline,
    "scattered": offline,
}


def build_every_source(root: Path) -> dict[str, Path]:
    """Folder of the built split, by source."""
    folders = {}
    for source, make in RAW_SETS.items():
        raw = make(root / "raw" / source)
        options = BuildOptions(samples_per_shard=SAMPLES_PER_SHARD, limit=5, classes=raw.classes)
        build(source, raw=raw.raw, out=root / "shards", splits=(raw.split,), options=options)
        folders[source] = root / "shards" / source / raw.split
    return folders
