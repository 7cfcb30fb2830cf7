"""Signals of one checkpoint for every split of its next global batch, and what taking them costs.

    python benchmarks/signals.py runs/cifar10-cpu [--ranks 1 2 4] [--micro-batches 1 2 4 8 16 32 64]

Prints the table of docs/signals.md: a line for each number of ranks (processes on this machine, one thread each) and
each size of micro-batch that a rank's images have room for. Then, for one process and whole batches, the CPU time of a
diagnosis beside that of a step, in turn; and for each of configs/ the operations of a diagnosis beside those of the
steps from one log point to the next.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hjepa_shards import Batch as Loaded
from hjepa_shards import load_mixture, open_loader
from hjepa_train import RunConfig, load_run_config
from hjepa_train.base.distributed import joined, rank, world_size
from hjepa_train.base.mixture_facts import NO_FACTS
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.checkpoints.background_saver import restore
from hjepa_train.data.micro_batches import to_micro_batches
from hjepa_train.jobs.run import objective_of
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.parallel.memory_estimate import on_fake_tensors
from hjepa_train.training.config import CONFIG_FILE, build_parts
from hjepa_train.training.diagnosis import MOST_IMAGES, diagnosis
from hjepa_train.training.optimizer import build_optimizer

CPU = torch.device("cpu")
NAMES = ("rho_l0", "gap_l0", "sd", "positional_share", "rankme", "alignment", "uniformity")
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, with a checkpoint")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        (world, size): signals
        for world in arguments.ranks
        for size, signals in of_ranks(arguments.run, world, arguments.micro_batches).items()
    }
    print_table(found)
    print_cost(arguments.run)
    print_operations()


def of_ranks(run: Path, world: int, sizes: Sequence[int]) -> dict[int, dict[str, float]]:
    """Micro-batch -> the signals that rank 0 has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    sent = context.Queue()
    processes = [
        context.Process(target=of_rank, args=(number, world, port, run, sizes, sent)) for number in range(world)
    ]
    for process in processes:
        process.start()
    found = sent.get()
    for process in processes:
        process.join()
    return found


def of_rank(number: int, world: int, port: int, run: Path, sizes: Sequence[int], sent: "Queue[Any]") -> None:
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    with joined(CPU, 600):
        config, objective, _, loaded = restored(run)
        rows, found = len(loaded.images), {}
        for size in (size for size in sizes if rows % size == 0):
            found[size] = diagnosis(objective, micro_batches(config, loaded, size), loaded)
        if number == 0:
            sent.put(found)


def restored(run: Path) -> tuple[RunConfig, Objective, torch.optim.Optimizer, Loaded]:
    """A run's latest checkpoint, and this rank's part of the batch that comes next."""
    config = load_run_config(run / CONFIG_FILE)
    newest = checkpoint_files.latest(run / "checkpoints")
    assert newest, f"{run}: a run with a checkpoint expected"
    saved = checkpoint_files.load(newest)
    mixture, seed = load_mixture(config.data, str(run)), config.run.seed
    num_steps = mixture.make_plan(seed).num_steps(config.training.epochs, config.training.global_batch)
    objective = objective_of(config, num_steps, str(run), CPU, NO_FACTS).train()
    optimizer = build_optimizer(objective, config.training)
    restore(saved, objective, optimizer)
    loader = open_loader(
        mixture,
        seed=seed,
        global_batch=config.training.global_batch,
        rank=rank(),
        world=world_size(),
        state=saved.state["loader"],
    )
    with loader:
        loaded = next(loader)
    return config, objective, optimizer, loaded


def micro_batches(config: RunConfig, loaded: Loaded, size: int) -> list[Batch]:
    return to_micro_batches(loaded, config.data, micro_batch=size, seed=config.run.seed, device=CPU)


def print_table(found: dict[tuple[int, int], dict[str, float]]) -> None:
    expected = next(iter(found.values()))
    names = [name for name in NAMES if name in expected]
    print(f"| ranks | micro-batch | {' | '.join(names)} |")
    print("|---:" * (2 + len(names)) + "|")
    for (world, size), signals in found.items():
        print(f"| {world} | {size} | {' | '.join(f'{signals[name]:.7f}' for name in names)} |")
    apart = max(abs(signals[name] - expected[name]) for signals in found.values() for name in expected)
    print(f"farthest apart: {apart:.1e}")


def print_cost(run: Path) -> None:
    """Seconds of CPU time, medians of rounds in which a diagnosis and a step take turns."""
    config, objective, optimizer, loaded = restored(run)
    (batch,) = batches = micro_batches(config, loaded, len(loaded.images))
    looked, stepped = [], []
    for step in range(ROUNDS):
        began = time.process_time()
        diagnosis(objective, batches, loaded)
        looked.append(time.process_time() - began)
        began = time.process_time()
        objective.before_step(batches)
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step, torch.tensor(True))
        stepped.append(time.process_time() - began)
    look, step_s, every = statistics.median(looked), statistics.median(stepped), config.logging.every_steps
    print(
        f"{run.name}: a diagnosis {look * 1000:.0f} ms, a step of {len(loaded.images)} images {step_s * 1000:.0f} ms: "
        f"{look / step_s:.2f} of a step, {look / step_s / 20:.1%} of 20 steps, {look / step_s / every:.1%} of {every}"
    )


def print_operations() -> None:
    print("| configuration | images looked at | of | every | share of the steps' FLOP |\n|---|---:|---:|---:|---:|")
    for path in sorted(Path("configs").glob("*.yaml")):
        config = load_run_config(path)
        batch, every = config.training.global_batch, config.logging.every_steps
        with torch.device("meta"):
            _, objective = build_parts(config, 10**6, str(path))
        per_step, size = objective.flops_per_image(), config.data.image_size
        with on_fake_tensors(objective), torch.no_grad(), FlopCounterMode(display=False) as counter:
            index = torch.arange(4)
            images = torch.empty(4, 3, size, size)
            views = (images,) * (objective.num_views - 1)
            one = Batch(images_BCHW=images, labels_B=index, positions_B=index, entry_B=index, rows=4, other_views=views)
            sums, kept = objective.survey(one)
            objective.observe(one, kept, sums)
        looked = min(batch, MOST_IMAGES)
        share = counter.get_total_flops() / 4 * looked / (per_step * batch * every)
        print(f"| {path.name} | {looked} | {batch} | {every} steps | {share:.2%} |")


if __name__ == "__main__":
    main()
