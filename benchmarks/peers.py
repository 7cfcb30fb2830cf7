"""The peers of `loader_vs_peers.py`: how each one's data are made, and the fastest sensible way through them.

    python benchmarks/peers.py prepare PEER IMAGES DATA
    python benchmarks/peers.py measure PEER DATA --size 224 --workers 2 --images 4096

Runs in the peer's own environment, so nothing of this project is imported but by `hjepa` itself. All give batches of 64
uint8 crops of `size` (RandomResizedCrop, scale .8 to 1, and a flip) to a loop that does nothing with them.

IMAGES: a folder of one folder of JPEGs or of PNGs.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

BATCH, SCALE = 64, (0.8, 1.0)
WARM_UP = 512
PER_SHARD = 512


@dataclass(frozen=True)
class Peer:
    packages: tuple[str, ...]
    """Of its environment; peers with the same ones share it."""
    prepare: Callable[[list[Path], Path], None]
    """(image files, folder for its data)"""
    batches: Callable[[Path, int, int], Iterable[Any]]
    """(its data, side of a crop, workers) -> batches, again and again."""


# ---- this project


def hjepa_prepare(images: list[Path], data: Path) -> None:
    from hjepa_shards import BuildOptions, EncodeSettings, build

    options = BuildOptions(settings=EncodeSettings(pixels="keep"), samples_per_shard=PER_SHARD)
    build("folder", raw=images[0].parent, out=data, options=options)


def hjepa_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    import cv2
    import numpy as np

    from hjepa_shards import DataConfig, load_mixture, open_loader

    config = {
        "root": str(data),
        "strategy": "concat",
        "image_size": size,
        "sources": [{"name": "folder"}],
        "threads": workers,
    }
    rng = np.random.default_rng(0)
    with open_loader(load_mixture(DataConfig.model_validate(config), "bench"), seed=0, global_batch=BATCH) as loader:
        for batch in loader:
            for image in batch.images[rng.random(BATCH) < 0.5]:  # the trainer flips on its device
                cv2.flip(image, 1, dst=image)
            yield batch


# ---- torchvision


def of_pillow(size: int) -> Callable[[Any], Any]:
    from torchvision import transforms

    return transforms.Compose(
        [transforms.RandomResizedCrop(size, SCALE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )


def of_tensors(size: int) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, SCALE, antialias=True), v2.RandomHorizontalFlip()])


def from_bytes(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def decoded(data: bytes) -> Any:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def image_folder_prepare(images: list[Path], data: Path) -> None:
    (data / "all").symlink_to(images[0].parent)


def image_folder_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    loader = DataLoader(
        ImageFolder(str(data), of_pillow(size)), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    return chain.from_iterable(repeat(loader))


# ---- webdataset


def webdataset_prepare(images: list[Path], data: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{data}/%06d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for number, path in enumerate(images):
            writer.write({"__key__": f"{number:08}", "img": path.read_bytes(), "cls": b"%d" % number})


def webdataset_batches(decode: Callable[[bytes], Any], transform: Callable[[int], Callable[[Any], Any]]) -> Any:
    def batches(data: Path, size: int, workers: int) -> Iterator[Any]:
        import webdataset

        crop = transform(size)
        dataset = (
            webdataset.WebDataset(sorted(map(str, data.glob("*.tar"))), resampled=True, shardshuffle=False)
            .shuffle(1000)
            .to_tuple("img", "cls")
            .map_tuple(lambda image: crop(decode(image)), int)
            .batched(BATCH)
        )
        return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers))

    return batches


# ---- mosaicml-streaming


def streaming_prepare(images: list[Path], data: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(data / "mds"), columns={"image": "bytes", "label": "int"}) as writer:
        for number, path in enumerate(images):
            writer.write({"image": path.read_bytes(), "label": number})


def streaming_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    from streaming import StreamingDataLoader, StreamingDataset

    crop = of_tensors(size)

    class Crops(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            return crop(decoded(found["image"])), found["label"]

    dataset = Crops(local=str(data / "mds"), shuffle=True, batch_size=BATCH)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return chain.from_iterable(repeat(loader))


# ---- litdata


def as_it_is(path: str) -> Any:
    return {"image": Path(path).read_bytes(), "label": int(Path(path).stem)}


def litdata_prepare(images: list[Path], data: Path) -> None:
    from litdata import optimize

    optimize(as_it_is, list(map(str, images)), output_dir=str(data / "chunks"), chunk_bytes="16MB", num_workers=1)


def litdata_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    crop = of_tensors(size)

    class Crops(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            return crop(decoded(found["image"])), found["label"]

    dataset = Crops(str(data / "chunks"), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return chain.from_iterable(repeat(loader))


# ---- DALI on the CPU


def dali_prepare(images: list[Path], data: Path) -> None:
    (data / "all").symlink_to(images[0].parent)


def dali_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, seed=0)
    def crops() -> Any:
        files, labels = fn.readers.file(file_root=str(data), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(files, random_area=SCALE, random_aspect_ratio=(3 / 4, 4 / 3))
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=False)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    pipeline = crops()
    pipeline.build()
    while True:
        yield pipeline.run()


# ---- Energon


def energon_prepare(images: list[Path], data: Path) -> None:
    webdataset_prepare(images, data)
    command = Path(sys.executable).with_name("energon")
    options = ["--non-interactive", "--no-progress", "--num-workers", "1", "--split-parts", r"train:.*\.tar"]
    kind = ["--sample-type", "ImageClassificationSample", "--field-map", '{"image": "img", "label": "cls"}']
    subprocess.run([command, "prepare", data, *options, *kind], check=True)


def energon_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    import torch
    from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset, stateless

    crop = of_tensors(size)

    class Crops(DefaultTaskEncoder):
        decoder = None  # its own is no faster

        @stateless(restore_seeds=True)
        def encode_sample(self, sample: Any) -> Any:
            return crop(decoded(sample.image))

        def batch(self, samples: list[Any]) -> Any:
            return torch.stack(samples)

    dataset = get_train_dataset(
        data,
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        task_encoder=Crops(),
    )
    return iter(get_loader(dataset))


# ---- FFCV


def ffcv_prepare(images: list[Path], data: Path) -> None:
    """Wants `apt-get install pkg-config libopencv-dev libturbojpeg0-dev`."""
    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    if images[0].suffix != ".jpg":
        raise SystemExit("FFCV stores JPEGs or bare pixels")

    class Files:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, at: int) -> Any:
            return np.asarray(from_bytes(images[at].read_bytes())), 0

    image = RGBImageField(write_mode="jpg", jpeg_quality=90)
    writer = DatasetWriter(str(data / "images.beton"), {"image": image, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(Files())


def ffcv_batches(data: Path, size: int, workers: int) -> Iterator[Any]:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip

    loader = Loader(
        str(data / "images.beton"),
        batch_size=BATCH,
        num_workers=workers,
        order=OrderOption.QUASI_RANDOM,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder((size, size), scale=SCALE), RandomHorizontalFlip()],
            "label": [IntDecoder()],
        },
    )
    return chain.from_iterable(repeat(loader))


TORCH = ("torch!=2.13.0", "torchvision", "webdataset", "torchdata")
PEERS = {
    "hjepa": Peer((), hjepa_prepare, hjepa_batches),
    "webdataset-pillow": Peer(TORCH, webdataset_prepare, webdataset_batches(from_bytes, of_pillow)),
    "webdataset-torchvision": Peer(TORCH, webdataset_prepare, webdataset_batches(decoded, of_tensors)),
    "imagefolder": Peer(TORCH, image_folder_prepare, image_folder_batches),
    "streaming": Peer(("mosaicml-streaming", "torch!=2.13.0", "torchvision"), streaming_prepare, streaming_batches),
    "litdata": Peer(("litdata", "torch!=2.13.0", "torchvision"), litdata_prepare, litdata_batches),
    "energon": Peer(("megatron-energon", *TORCH[:2]), energon_prepare, energon_batches),
    "ffcv": Peer(("ffcv", *TORCH[:2]), ffcv_prepare, ffcv_batches),
    "dali-cpu": Peer(("nvidia-dali-cuda120", "numpy"), dali_prepare, dali_batches),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "measure"])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=4096)
    arguments = parser.parse_args()
    peer, data = PEERS[arguments.peer], arguments.folders[-1]
    if arguments.what == "prepare":
        data.mkdir(parents=True)
        peer.prepare(sorted(arguments.folders[0].glob("*/*.*")), data)
        return
    batches = iter(peer.batches(data, arguments.size, arguments.workers))
    for _ in range(WARM_UP // BATCH):
        next(batches)
    began = time.perf_counter()
    for _ in range(arguments.images // BATCH):
        next(batches)
    print(json.dumps({"images_per_s": arguments.images / (time.perf_counter() - began)}), flush=True)
    os._exit(0)  # not every peer's workers end by themselves


if __name__ == "__main__":
    main()
