"""What is saved is the state at the time of the request, and a save that fails in the background is reported."""

import resource
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_saver

from hjepa_train.base.distributed import is_shard
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.checkpoints.background_saver import Saver, restore
from hjepa_train.checkpoints.checkpoint_files import CheckpointError, is_sharded, load
from hjepa_train.objectives.joint.hjepa import HJepa
from hjepa_train.parallel.layout import ScaleConfig, lay_out
from hjepa_train.training.optimizer import OptimConfig, build_optimizer
from tests.hjepa_train.training.test_optimizer import objective
from tests.processes import start_ranks


def step_of(model: HJepa, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [numbers["exp_avg"] for _, numbers in sorted(optimizer.state_dict()["state"].items())]
    return [tensor.clone() for tensor in (*model.state_dict().values(), *moments)]


def test_what_is_saved_is_the_state_at_the_time_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, honest = threading.Event(), checkpoint_files.save

    def write_late(*arguments: Any, **named: Any) -> Path:
        assert may_write.wait(60)
        return honest(*arguments, **named)

    monkeypatch.setattr(checkpoint_files, "save", write_late)
    model = objective()
    optimizer = build_optimizer(model, OptimConfig())
    step_of(model, optimizer)
    expected = everything(model, optimizer)
    with closing(Saver(tmp_path, model, optimizer, keep=1)) as saver:
        saver.save(1, {"step": 1})
        step_of(model, optimizer)
        may_write.set()
        saver.wait()
    assert not all(torch.equal(a, b) for a, b in zip(everything(model, optimizer), expected, strict=True))
    restore(load(tmp_path / "step-00000001"), model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(everything(model, optimizer), expected, strict=True))


@contextmanager
def files_below(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("when", ["before the next", "at the end"])
def test_a_save_that_fails_in_the_background_is_reported_and_the_last_good_one_stays(tmp_path: Path, when: str) -> None:
    model = objective()
    with closing(Saver(tmp_path, model, build_optimizer(model, OptimConfig()), keep=2)) as saver:
        saver.save(1, {"step": 1})
        saver.wait()
        with files_below(1 << 10):
            saver.save(2, {"step": 2})
            with pytest.raises(CheckpointError, match=r"File too large.*step-00000001"):
                saver.wait() if when == "at the end" else saver.save(3, {"step": 3})
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        saver.save(4, {"step": 4})
        saver.wait()
    assert load(tmp_path / "step-00000004").step == 4


def late_main(number: int, folder: str) -> None:
    """A save of shards that is written once training has gone on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    may_write, honest = threading.Event(), state_dict_saver.save

    def write_late(*arguments: Any, **named: Any) -> Any:
        assert may_write.wait(60)
        return honest(*arguments, **named)

    state_dict_saver.save = write_late
    model = objective()
    lay_out(model, ScaleConfig(parallel="fsdp"))
    optimizer = build_optimizer(model, OptimConfig())
    step_of(model, optimizer)
    checkpoints = Path(folder, "checkpoints")
    with closing(Saver(checkpoints, model, optimizer, keep=1)) as saver:
        saver.save(1, {"step": 1})
        saved_tensors = [
            tensor.full_tensor() if is_shard(tensor) else tensor for tensor in everything(model, optimizer)
        ]
        step_of(model, optimizer)
        assert number > 0 or not (checkpoints / "step-00000001").exists()
        may_write.set()
        saver.wait()
    torch.save(saved_tensors, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_shards_are_saved_as_they_were_while_ranks_train_on(tmp_path: Path) -> None:
    start_ranks(late_main, tmp_path)
    saved = load(tmp_path / "checkpoints" / "step-00000001")
    assert is_sharded(saved.path)
    model = objective()
    optimizer = build_optimizer(model, OptimConfig())
    restore(saved, model, optimizer)
    for number in (0, 1):
        expected = torch.load(tmp_path / f"{number}.pt")
        found = everything(model, optimizer)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def full_main(number: int, folder: str) -> None:
    """The second save finds no room on rank 1's disk."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    model = objective()
    lay_out(model, ScaleConfig(parallel="fsdp"))
    with closing(Saver(Path(folder, "checkpoints"), model, build_optimizer(model, OptimConfig()), keep=2)) as saver:
        saver.save(1, {"step": 1})
        saver.wait()
        with files_below(1 << 10 if number == 1 else 1 << 40):
            saver.save(2, {"step": 2})
            with pytest.raises((CheckpointError, SystemExit)) as raised:
                saver.wait()
        Path(folder, f"{number}.txt").write_text(f"{raised.typename}: {raised.value}")
        saver.save(3, {"step": 3})
        saver.wait()
    dist.destroy_process_group()


def test_shards_that_one_rank_cannot_write_end_all_and_the_last_good_ones_stay(tmp_path: Path) -> None:
    start_ranks(full_main, tmp_path)
    said = [(tmp_path / f"{number}.txt").read_text() for number in (0, 1)]
    assert said[0].startswith("CheckpointError:")
    assert "step-00000001" in said[0]
    assert said[1] == "SystemExit: 2"
    checkpoints = tmp_path / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000001", "step-00000003"]
    assert load(checkpoints / "step-00000003").step == 3
