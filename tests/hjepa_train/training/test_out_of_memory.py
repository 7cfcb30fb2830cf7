"""A memory that is full is one line with what to do next, wherever it fills."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hjepa_shards.errors import InputError
from hjepa_train import load_run_config, train
from hjepa_train.base.full_memory import reporting_full_memory
from hjepa_train.cli import main
from tests.conftest import in_this_process
from tests.hjepa_train.tiny import tiny_run


@contextmanager
def memory_left(num_bytes: int) -> Iterator[None]:
    """This process may have this many bytes more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 60 GiB, other allocations: 2 GiB)."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
    ids=["CUDA", "MPS", "CPU"],
)
@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "of 16 images; set `training.micro_batch: 8`, and `statistics: exact`"),
        ({"training__micro_batch": 2}, "of 2 images; choose a smaller backbone or data.image_size"),
    ],
)
def test_a_device_whose_memory_is_full_has_the_micro_batch_to_try(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    advice: str,
    error: RuntimeError,
) -> None:
    """No device is filled here: what PyTorch raises on each is raised where it would be."""

    def run_out(*_: object) -> None:
        raise error

    monkeypatch.setattr("hjepa_train.objectives.joint.hjepa.HJepa.forward", run_out)
    with pytest.raises(InputError) as raised:
        train(load_run_config(tiny_run(shards, tmp_path, **changes)))
    assert str(raised.value).startswith(f"cpu: its memory is full with micro-batches {advice}")


def test_a_backbone_that_does_not_fit_by_its_weights_alone_is_refused(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path), ["backbone={vit: {size: huge, patch: 2}}"])
    with memory_left(1 << 28), pytest.raises(InputError) as raised:
        train(config)
    assert str(raised.value) == "cpu: its memory is full with the weights alone; choose a smaller backbone"
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["PyTorch", "NumPy"])
def test_any_other_command_says_in_one_line_that_memory_is_full(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    allocate: Callable[[int], object],
) -> None:
    """More is requested than a process can address."""
    monkeypatch.setattr("hjepa_train.jobs.export.export", lambda *_, **__: allocate(1 << 48))
    code, _, said = in_this_process("hjepa-train", main, monkeypatch, capfd)("export", tmp_path, "--to", "torch")
    assert code == 2
    assert said.startswith("error: the memory of this machine or of its device is full; ")
    assert said.count("\n") == 1


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), reporting_full_memory("full"):
        raise RuntimeError("shapes do not match")
