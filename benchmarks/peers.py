"""The peers of `loader_vs_peers.py`: how each one's data are made, and the fastest sensible way through them.

    python benchmarks/peers.py prepare PEER IMAGES DATA
    python benchmarks/peers.py measure PEER DATA --workers 2 --images 4096

Runs in the peer's own environment, so nothing of this project is imported but by `hjepa` itself. All give batches of 64
uint8 crops of 224 (RandomResizedCrop, scale .8 to 1, and a flip) to a loop that does nothing with them.

IMAGES: a folder of one folder of JPEGs.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

BATCH, SIZE, SCALE = 64, 224, (0.8, 1.0)
WARM_UP = 512
PER_SHARD = 512


@dataclass(frozen=True)
class Peer:
    packages: tuple[str, ...]
    """Of its environment; peers with the same ones share it."""
    prepare: Callable[[list[Path], Path], None]
    """(JPEGs, folder for its data)"""
    batches: Callable[[Path, int], Iterable[Any]]
    """(its data, workers) -> batches, again and again."""


# ---- this project


def hjepa_prepare(images: list[Path], data: Path) -> None:
    from hjepa_shards import BuildOptions, EncodeSettings, build

    options = BuildOptions(settings=EncodeSettings(pixels="keep"), samples_per_shard=PER_SHARD)
    build("folder", raw=images[0].parent, out=data, options=options)


def hjepa_batches(data: Path, workers: int) -> Iterator[Any]:
    from hjepa_shards import DataConfig, load_mixture, open_loader

    config = {"root": str(data), "strategy": "concat", "sources": [{"name": "folder"}], "threads": workers}
    with open_loader(load_mixture(DataConfig.model_validate(config), "bench"), seed=0, global_batch=BATCH) as loader:
        yield from loader


# ---- torchvision


def of_pillow() -> Callable[[Any], Any]:
    from torchvision import transforms

    return transforms.Compose(
        [transforms.RandomResizedCrop(SIZE, SCALE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )


def of_tensors() -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(SIZE, SCALE, antialias=True), v2.RandomHorizontalFlip()])


def from_bytes(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def decoded(data: bytes) -> Any:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def image_folder_prepare(images: list[Path], data: Path) -> None:
    (data / "all").symlink_to(images[0].parent)


def image_folder_batches(data: Path, workers: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    loader = DataLoader(
        ImageFolder(str(data), of_pillow()), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    return chain.from_iterable(repeat(loader))


# ---- webdataset


def webdataset_prepare(images: list[Path], data: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{data}/%06d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for number, path in enumerate(images):
            writer.write({"__key__": f"{number:08}", "jpg": path.read_bytes(), "cls": b"0"})


def webdataset_batches(decode: Callable[[bytes], Any], transform: Callable[[], Callable[[Any], Any]]) -> Any:
    def batches(data: Path, workers: int) -> Iterator[Any]:
        import webdataset

        crop = transform()
        dataset = (
            webdataset.WebDataset(sorted(map(str, data.glob("*.tar"))), resampled=True, shardshuffle=False)
            .shuffle(1000)
            .to_tuple("jpg", "cls")
            .map_tuple(lambda image: crop(decode(image)), int)
            .batched(BATCH)
        )
        return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=workers))

    return batches


# ---- mosaicml-streaming


def streaming_prepare(images: list[Path], data: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(data / "mds"), columns={"image": "bytes", "label": "int"}) as writer:
        for path in images:
            writer.write({"image": path.read_bytes(), "label": 0})


def streaming_batches(data: Path, workers: int) -> Iterator[Any]:
    from streaming import StreamingDataLoader, StreamingDataset

    crop = of_tensors()

    class Crops(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            return crop(decoded(found["image"])), found["label"]

    dataset = Crops(local=str(data / "mds"), shuffle=True, batch_size=BATCH)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return chain.from_iterable(repeat(loader))


# ---- litdata


def as_it_is(path: str) -> Any:
    from PIL import Image

    return {"image": Image.open(path), "label": 0}  # stores the file's own bytes


def litdata_prepare(images: list[Path], data: Path) -> None:
    from litdata import optimize

    optimize(as_it_is, list(map(str, images)), output_dir=str(data / "chunks"), chunk_bytes="16MB", num_workers=1)


def litdata_batches(data: Path, workers: int) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    crop = of_tensors()

    class Crops(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            return crop(found["image"]), found["label"]

    dataset = Crops(str(data / "chunks"), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return chain.from_iterable(repeat(loader))


# ---- DALI on the CPU


def dali_prepare(images: list[Path], data: Path) -> None:
    (data / "all").symlink_to(images[0].parent)


def dali_batches(data: Path, workers: int) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, seed=0)
    def crops() -> Any:
        files, labels = fn.readers.file(file_root=str(data), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(files, random_area=SCALE, random_aspect_ratio=(3 / 4, 4 / 3))
        images = fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=False)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    pipeline = crops()
    pipeline.build()
    while True:
        yield pipeline.run()


TORCH = ("torch!=2.13.0", "torchvision", "webdataset")
PEERS = {
    "hjepa": Peer((), hjepa_prepare, hjepa_batches),
    "webdataset-pillow": Peer(TORCH, webdataset_prepare, webdataset_batches(from_bytes, of_pillow)),
    "webdataset-torchvision": Peer(TORCH, webdataset_prepare, webdataset_batches(decoded, of_tensors)),
    "imagefolder": Peer(TORCH, image_folder_prepare, image_folder_batches),
    "streaming": Peer(("mosaicml-streaming", "torch!=2.13.0", "torchvision"), streaming_prepare, streaming_batches),
    "litdata": Peer(("litdata", "torch!=2.13.0", "torchvision"), litdata_prepare, litdata_batches),
    "dali-cpu": Peer(("nvidia-dali-cuda120", "numpy"), dali_prepare, dali_batches),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "measure"])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=4096)
    arguments = parser.parse_args()
    peer, data = PEERS[arguments.peer], arguments.folders[-1]
    if arguments.what == "prepare":
        data.mkdir(parents=True)
        peer.prepare(sorted(arguments.folders[0].glob("*/*.jpg")), data)
        return
    batches = iter(peer.batches(data, arguments.workers))
    for _ in range(WARM_UP // BATCH):
        next(batches)
    began = time.perf_counter()
    for _ in range(arguments.images // BATCH):
        next(batches)
    print(json.dumps({"images_per_s": arguments.images / (time.perf_counter() - began)}), flush=True)
    os._exit(0)  # not every peer's workers end by themselves


if __name__ == "__main__":
    main()
