"""Ranks that were not given the same are refused by name, all of them, before a step is taken."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import InputError
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.jobs import run
from tests.hjepa_train.test_ranks import environment
from tests.hjepa_train.tiny import PROBED, tiny_run
from tests.processes import forked, free_port, start_ranks

ADVICE = "; start all ranks with the same configuration, arguments, shards and versions"


@pytest.fixture(scope="module")
def other_shards(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in another order; the photos are the same."""
    root = tmp_path_factory.mktemp("other")
    (root / "photos").symlink_to(shards / "photos")
    options = BuildOptions(samples_per_shard=48, limit=200, seed=7)
    build("digits", raw=None, out=root, splits=("train", "test"), options=options)
    return root


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__lr": 2e-3}, "training.lr: 0.001 on rank 0, 0.002 on rank 1"),
        ({"run__seed": 4}, "run.seed: 3 on rank 0, 4 on rank 1"),
        ({"data__root": "other"}, "shards of digits: '200 samples in order "),
    ],
)
def test_a_rank_with_another_learning_rate_seed_or_shards_ends_all_with_its_name_before_a_step(
    shards: Path, other_shards: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    if changes.get("data__root"):
        changes = {"data__root": str(other_shards)}
    configs = tiny_run(shards, tmp_path), tiny_run(shards, tmp_path / "wrong", **changes)
    port = free_port()
    with (
        forked("hjepa-train", "run", configs[0], said=tmp_path / "0", environment=environment(0, 2, port)) as first,
        forked("hjepa-train", "run", configs[1], said=tmp_path / "1", environment=environment(1, 2, port)) as second,
    ):
        spoken = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (2, 2), spoken
    for number, (out, err) in enumerate(spoken):
        assert out == b""
        line = err.decode().splitlines()[-1]
        assert line.startswith(f"rank {number}: error: the ranks do not have the same: {said}")
        assert ADVICE in line
        assert "Traceback" not in err.decode()
    assert not (tmp_path / "tiny").exists()
    assert not (tmp_path / "wrong" / "tiny").exists()


SMALL = {"momentum": 0.8, "predictor": {"width": 16, "depth": 1, "heads": 2}}


def given_to(number: int, folder: Path, shards: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(changes of the configuration, arguments of `train`) of a rank in each case."""
    second = number == 1
    return [
        ({}, {"stop_after": 2 + number}),
        ({}, {"stop_after": 2, "accept_content": second}),
        ({"logging": {"every_steps": 1 + number, "images_every": 0, "tensorboard": False}}, {"stop_after": 2}),
        ({"data__root": f"{folder}/nothing" if second else shards}, {"stop_after": 2}),
        ({"objective__hjepa": {"momentum": 0.8, **({"num_blocks": 3} if second else {})}}, {"stop_after": 2}),
        (  # other images to be probed on, of the same source
            {"data__root": f"{folder}/retested" if second else shards, "evaluation": PROBED},
            {"stop_after": 2},
        ),
        (  # what may differ: locations, threads, and whether a default is written out
            {
                "data__root": f"{folder}/linked" if second else shards,
                "data__threads": 1 + number,
                "training__threads": 1,
                "run__folder": f"{folder}/{number}",
                "objective__hjepa": {**SMALL, **({"num_blocks": 4} if second else {})},
            },
            {"stop_after": 2},
        ),
    ]


def many_main(number: int, folder: str) -> None:
    """One run after the other; rank 1 begins with other weights, and restores others than are saved."""
    torch.set_num_threads(1)
    task = torch.load(f"{folder}/task")
    said: list[str] = []
    place = Path(folder) / str(number)

    def attempt(path: Path, port: int, **arguments: Any) -> None:
        os.environ.update(environment(number, 2, port))
        try:
            train(load_run_config(path), **arguments)
            said.append("")
        except InputError as error:
            said.append(str(error))

    if number == 1:
        run.build_parts = perturbed(run.build_parts, lambda found: found[1])
    ports = iter(task["ports"])
    for changes, arguments in given_to(number, Path(folder), task["shards"]):
        attempt(tiny_run(Path(task["shards"]), place, **changes), next(ports), **arguments)
    same = tiny_run(Path(task["shards"]), place, run__folder="runs")
    os.chdir(folder)
    attempt(same, next(ports), stop_after=2)
    if number == 1:
        run.restore = perturbed(run.restore, lambda found: found, argument=1)
    attempt(same, next(ports), resume="auto")
    if number == 1:  # another checkpoint where rank 0 says that it is
        os.chdir(place)
        shutil.copytree(f"{folder}/0/tiny/checkpoints", "runs/tiny/checkpoints")
    attempt(same, next(ports), resume="auto")
    torch.save(said, f"{folder}/{number}.pt")


def perturbed(function: Callable[..., Any], part: Callable[[Any], Any], argument: int | None = None) -> Any:
    """With other weights in what it gives, or in what it was given to change."""

    def other(*arguments: Any, **named: Any) -> Any:
        found = function(*arguments, **named)
        network = part(found) if argument is None else arguments[argument]
        with torch.no_grad():
            next(iter(network.parameters())).add_(1)
        return found

    return other


def test_what_ranks_may_not_differ_in_and_what_they_may(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(shards)
    shutil.copytree(shards, tmp_path / "retested")
    shutil.rmtree(tmp_path / "retested/digits/test")
    build("digits", raw=None, out=tmp_path / "retested", splits=("test",), options=BuildOptions(limit=50))
    torch.save({"shards": str(shards), "ports": [free_port() for _ in range(10)]}, tmp_path / "task")
    start_ranks(many_main, tmp_path)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in (0, 1))
    begins = "the ranks do not have the same: "
    expected = [
        f"{begins}--stop-after: 2 on rank 0, 3 on rank 1; start all ranks",
        f"{begins}--accept-content: False on rank 0, True on rank 1; start all ranks",
        f"{begins}logging.every_steps: 1 on rank 0, 2 on rank 1; start all ranks",
        None,
        f"{begins}objective.hjepa.num_blocks: 4 on rank 0, 3 on rank 1; start all ranks",
        f"{begins}content of digits/test: ",
        "",
        "",
        f"{begins}backbone.",
        f"{begins}checkpoint: '",
    ]
    assert len(first) == len(second) == len(expected)
    for mine, theirs, words in zip(first, second, expected, strict=True):
        if words is not None:
            assert mine == theirs, "both say the same"
            assert mine.startswith(words) if words else mine == ""
    assert second[3].startswith(f"tiny: {tmp_path}/nothing/digits/train/manifest.json expected, not found")
    assert first[3] == f"rank 1: {second[3]}", "the error of one is known to the other at once"
    alone = train(load_run_config(tiny_run(shards, tmp_path / "alone")), stop_after=2)
    losses, expected_losses = (
        [row["loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (tmp_path / "runs/tiny", alone)
    )
    assert losses == pytest.approx(expected_losses, rel=1e-5), "rank 0's weights are those of all"


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_said_before_anything_about_statistics(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    train(config, stop_after=1)
    for module in ("run", "resume_checks"):
        monkeypatch.setattr(f"hjepa_train.jobs.{module}.world_size", lambda: 3)
    with pytest.raises(InputError, match=r"global_batch: 16 images cannot be shared .* by 3 ranks; start 2 or 4"):
        train(config, resume="auto")
    for module in ("run", "resume_checks"):
        monkeypatch.setattr(f"hjepa_train.jobs.{module}.world_size", lambda: 32)
    with pytest.raises(InputError, match=r"by 32 ranks; start 16, or, for a new run, set a multiple of 32"):
        train(config, resume="auto")
