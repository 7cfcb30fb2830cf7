"""One rank of a peer for `resume_vs_peers.py`: reads part of an epoch and saves, or continues from there to its end.

    python benchmarks/resume_peers.py PEER DATA --state FILE (--take N | --resume FILE)

Runs in the peer's own environment, with RANK, WORLD_SIZE and so on as torchrun sets them. A sample is its number; no
image is decoded. Prints one line of JSON: the numbers in the order of delivery, and the seconds from opening the data
set to the first batch.
"""

import argparse
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

BATCH = 64
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
GLOBAL_BATCH = 128
"""Of this project's loader, whatever the number of ranks."""

Batches = Iterator[list[int]]
Opened = tuple[Batches, Callable[[], Any]]
"""(batches of sample numbers to the end of the epoch, what gives the state after the batch delivered last)"""


def hjepa(data: Path, state: Any) -> Opened:
    from hjepa_shards import DataConfig, load_mixture, open_loader

    config = {"root": str(data), "strategy": "concat", "image_size": 8, "sources": [{"name": "folder"}], "threads": 1}
    mixture = load_mixture(DataConfig.model_validate(config), "bench")
    loader = open_loader(mixture, seed=0, global_batch=GLOBAL_BATCH, rank=RANK, world=WORLD, state=state)
    held: list[Any] = [None]

    def batches() -> Batches:
        for held[0] in loader:
            inside = held[0].positions < mixture.epoch_samples
            yield held[0].samples[inside].tolist()
            if held[0].next_position >= mixture.epoch_samples:
                return

    return batches(), lambda: loader.state_dict(held[0])


def webdataset(data: Path, state: Any) -> Opened:
    """It keeps no state: a run that continues begins its epoch again."""
    import webdataset as wds

    shards = sorted(map(str, data.glob("*.tar")))
    dataset = (
        wds.WebDataset(shards, shardshuffle=100, seed=0, nodesplitter=wds.split_by_node)
        .shuffle(1000, seed=0)
        .to_tuple("cls")
        .map_tuple(int)
        .batched(BATCH)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=1)
    return ([int(number) for number in batch[0]] for batch in loader), lambda: None


def torchdata(data: Path, state: Any) -> Opened:
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

    numbers = list(range(len(list(data.glob("all/*.*")))))
    sampler = StatefulDistributedSampler(numbers, num_replicas=WORLD, rank=RANK, shuffle=True, seed=0)
    return going_on(StatefulDataLoader(numbers, batch_size=BATCH, sampler=sampler, num_workers=1), state)


def litdata(data: Path, state: Any) -> Opened:
    import torch
    from litdata import StreamingDataLoader, StreamingDataset

    torch.distributed.init_process_group("gloo")
    dataset = numbered(StreamingDataset)(str(data / "chunks"), shuffle=True, drop_last=False, seed=0)
    return going_on(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1), state)


def streaming(data: Path, state: Any) -> Opened:
    from streaming import StreamingDataLoader, StreamingDataset

    dataset = numbered(StreamingDataset)(local=str(data / "mds"), shuffle=True, batch_size=BATCH, shuffle_seed=0)
    return going_on(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1), state)


def numbered(base: Any) -> Any:
    """A data set of labels alone, which are the samples' numbers."""

    class Numbered(base):
        def __getitem__(self, at: Any) -> Any:
            return super().__getitem__(at)["label"]

    return Numbered


def going_on(loader: Any, state: Any) -> Opened:
    """As PyTorch's stateful loaders do."""
    if state:
        loader.load_state_dict(state)
    return (batch.tolist() for batch in loader), loader.state_dict


def energon(data: Path, state: Any) -> Opened:
    import torch
    from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_savable_loader, get_train_dataset

    class Numbered(DefaultTaskEncoder):
        decoder = None

        def batch(self, samples: list[Any]) -> Any:
            return torch.tensor([int(sample.__key__.rpartition("/")[2]) for sample in samples])

    dataset = get_train_dataset(
        data,
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        worker_config=WorkerConfig(rank=RANK, world_size=WORLD, num_workers=1),
        task_encoder=Numbered(),
        repeat=False,
    )
    loader = get_savable_loader(dataset)
    if state:
        loader.restore_state_rank(state)
    return (batch.tolist() for batch in loader), loader.save_state_rank


PEERS = {one.__name__: one for one in (hjepa, webdataset, torchdata, litdata, streaming, energon)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--state", type=Path, required=True, help="where it is saved")
    parser.add_argument("--take", type=int, help="samples to read before")
    parser.add_argument("--resume", type=Path, help="the state to continue from")
    arguments = parser.parse_args()
    state = pickle.loads(arguments.resume.read_bytes()) if arguments.resume else None
    with suppress(ImportError):  # not what is to be timed
        __import__("torch")
    began = time.perf_counter()
    batches, state_of = PEERS[arguments.peer](arguments.data, state)
    numbers: list[int] = []
    first_batch_s = None
    for batch in batches:
        first_batch_s = first_batch_s or time.perf_counter() - began
        numbers += batch
        if arguments.take and len(numbers) >= arguments.take:
            break
    arguments.state.write_bytes(pickle.dumps(state_of()))
    print(json.dumps({"numbers": numbers, "first_batch_s": first_batch_s}))
    sys.stdout.flush()
    os._exit(0)  # not every peer's workers end by themselves


if __name__ == "__main__":
    main()
