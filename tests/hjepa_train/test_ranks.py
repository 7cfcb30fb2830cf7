"""Several ranks train as one, continue as any other number of them, and end together when one must stop, or is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hjepa_shards.errors import InputError, ResumeMismatch, ShardError
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import is_sharded, latest, read_state
from hjepa_train.jobs.export import export
from tests.hjepa_shards.loader.test_elastic import damage
from tests.hjepa_train.tiny import PROBED, STEPS, tiny_run
from tests.processes import Forked, forked, free_port, no_network_namespaces, start_ranks

TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def environment(number: int, world: int, port: int) -> dict[str, str]:
    """What torchrun gives to a rank."""
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in names.items()}


def train_main(number: int, folder: str) -> None:
    """Train as one of several ranks: `folder`/task holds how."""
    task: dict[str, Any] = torch.load(f"{folder}/task")
    os.environ.update(environment(number, task["world"], task["port"]))
    try:
        train(load_run_config(Path(folder) / "run.yaml"), resume="auto", stop_after=task["stop_after"])
    except (InputError, ShardError) as error:
        (Path(folder) / f"said-{number}").write_text(str(error))


def train_ranks(
    config: Path, world: int, stop_after: int | None = None, main: Callable[[int, str], None] = train_main
) -> list[str]:
    """What each rank says that ends with an error."""
    torch.save({"world": world, "stop_after": stop_after, "port": free_port()}, config.parent / "task")
    start_ranks(main, config.parent, world)
    return [path.read_text() for path in sorted(config.parent.glob("said-*"))]


def rows(config: Path) -> list[dict[str, Any]]:
    return read_metrics(config.parent / "tiny" / "metrics.jsonl")


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same samples in the same order; losses, gradients and signals but for the order of additions."""
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    assert [row["proof"] for row in found] == [row["proof"] for row in expected]
    for name in ("loss", "grad_norm", "variance", "covariance"):
        torch.testing.assert_close(
            torch.tensor([row[name] for row in found]), torch.tensor([row[name] for row in expected]), rtol=1e-5, atol=0
        )
    for name in ("rho_l0", "gap_l0", "rho_l1", "gap_l1", "sd", "rankme", "positional_share", "target_distance"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-4, abs=1e-5), name
    assert {row["rankme_cap"] for row in found} == {15}
    for name in ("digits", "photos"):
        mine, theirs = ([row["sources"][name] for row in table] for table in (found, expected))
        assert [row["count"] for row in mine] == [row["count"] for row in theirs]
        assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)


OPTIMIZER = {"training__clip_norm": 0.1, "training__layer_decay": 0.8, "training__frozen": ["backbone.patch_embed"]}
"""What an optimizer has besides its rates; the gradients of a tiny run are longer."""
HJEPA = {"levels": 2, "momentum": 0.6, "predictor": {"width": 16, "depth": 1, "heads": 2}}
EXACT = HJEPA | {"statistics": "exact"}
SHORT = {"data__epoch_samples": 16 * 6, "objective__hjepa": HJEPA, **OPTIMIZER}
"""12 steps instead of 36: what ranks say to one another at each costs far more than what they compute."""


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the run logs as one process in whole batches."""
    config = tiny_run(shards, tmp_path_factory.mktemp("alone"), evaluation=PROBED, **SHORT)
    train(load_run_config(config))
    assert min(row["grad_norm"] for row in rows(config)) > 0.1
    return rows(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__micro_batch": 4, "objective__hjepa": EXACT},
        pytest.param(  # FSDP alone: test_compiled_ranks below, and test_nodes.py
            {
                "training__parallel": "fsdp",
                "training__activation_checkpointing": True,
                "training__micro_batch": 4,
                "objective__hjepa": EXACT,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_any_number_of_ranks_trains_as_one_and_continues_as_any_other(
    shards: Path, tmp_path: Path, alone: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    config = tiny_run(shards, tmp_path, evaluation=PROBED, **{**SHORT, **changes})
    assert train_ranks(config, 2, stop_after=3) == []
    assert train_ranks(config, 4, stop_after=5) == []
    train(load_run_config(config), resume="auto", stop_after=9)  # into the second epoch
    assert train_ranks(config, 2) == []
    assert_alike(rows(config), alone)
    saved = latest(tmp_path / "tiny" / "checkpoints")
    assert saved is not None
    assert saved.name == f"step-{len(alone):08}"
    assert read_state(saved)["loader"]["proof"] == alone[-1]["proof"]
    assert is_sharded(saved) == ("training__parallel" in changes)
    for name in ("knn_target", "ridge_online"):
        probed, expected = ({row["step"]: row[name] for row in table if name in row} for table in (rows(config), alone))
        assert probed.keys() >= {0, len(alone) - 1}
        assert probed == pytest.approx(expected, abs=4.1)  # of 50 images: two may be where rounding decides
    written = load_file(export(tmp_path / "tiny", "safetensors") / "model.safetensors")
    assert all(value.isfinite().all() for value in written.values())


@pytest.mark.slow  # a minute of compiling where it is the first time
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_ranks_train_as_one_and_compile_nothing_later(
    shards: Path, tmp_path: Path, alone: list[dict[str, Any]], parallel: str
) -> None:
    recomputed = parallel == "ddp"  # with FSDP: above
    config = tiny_run(
        *(shards, tmp_path),
        training__parallel=parallel,
        training__compile=True,
        training__activation_checkpointing=recomputed,
        **SHORT,
    )
    assert train_ranks(config, 2, stop_after=5) == []
    found = rows(config)
    assert_alike(found, alone[:5])
    graphs = [row["graphs"] for row in found]
    assert graphs[0] > 0
    assert set(graphs[3:]) == {graphs[3]}


def test_statistics_of_other_images_are_refused_and_the_micro_batch_that_continues_is_named(
    shards: Path, tmp_path: Path
) -> None:
    config = tiny_run(shards, tmp_path, training__micro_batch=4)
    assert train_ranks(config, 2, stop_after=5) == []
    with pytest.raises(ResumeMismatch, match=r"those of 8 images .* 4 here; set `training.micro_batch: 8`"):
        train(load_run_config(config), resume="auto")
    train(load_run_config(config, ["training.micro_batch=8"]), resume="auto", stop_after=6)


def test_damage_that_different_ranks_find_stops_the_run_at_one_step(shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    damage(root, {"digits": [(shard, row) for shard in range(4) for row in range(0, 40, 14)]})
    said = train_ranks(tiny_run(root, tmp_path / "run"), 2)
    assert len(said) == 2
    assert said[0] == said[1]
    assert "damaged samples found, 10 allowed" in said[0]
    assert 0 < len(rows(tmp_path / "run" / "run.yaml")) < STEPS


def start(config: Path, number: int, port: int, *options: str) -> AbstractContextManager[Forked]:
    """One rank of two."""
    said = config.parent / f"said-{number}-{port}"
    return forked("hjepa-train", "run", config, *options, said=said, environment=environment(number, 2, port))


def wait_for_step(process: Forked, config: Path, step: int) -> None:
    journal = config.parent / "tiny" / "metrics.jsonl"
    while process.poll() is None and not (journal.exists() and any(row["step"] >= step for row in rows(config))):
        time.sleep(0.03)


def test_a_rank_whose_others_do_not_come_says_so(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path, training__ranks_timeout_s=2)
    with start(config, 1, free_port(), "--resume", "auto") as process:
        out, said = process.communicate(timeout=120)
    assert process.returncode == 2, said.decode()
    *_, last = said.decode().splitlines()
    assert last.startswith("rank 1: error: rank 1 of 2 lost the others, or did not meet them within 2 s (")
    assert not out


def test_half_of_a_launchers_environment_is_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        InputError, match="WORLD_SIZE=4 is set, RANK, MASTER_ADDR, MASTER_PORT not; start with torchrun"
    ):
        train(load_run_config(tiny_run(shards, tmp_path)))


@pytest.mark.slow
def test_a_rank_killed_with_kill_9_ends_the_other_with_an_error_and_the_run_continues_from_its_checkpoint(
    shards: Path, tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    config = tiny_run(shards, tmp_path, training__save_every_steps=2, **SHORT)
    port = free_port()
    with start(config, 0, port, "--resume", "auto") as first, start(config, 1, port, "--resume", "auto") as second:
        wait_for_step(first, config, 2)
        second.send_signal(signal.SIGKILL)
        _, said = first.communicate(timeout=60)
    assert first.returncode == 2, said.decode()
    assert "rank 0: error: rank 0 of 2 lost the others" in said.decode()
    assert "Traceback" not in said.decode()
    train(load_run_config(config), resume="auto")
    assert_alike(rows(config), alone)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_and_ends_all_after_one_step(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path, training__epochs=40, training__save_every_steps=10_000)
    port = free_port()
    with start(config, 0, port, "--resume", "auto") as first, start(config, 1, port, "--resume", "auto") as second:
        wait_for_step(first, config, 3)
        second.send_signal(signal.SIGUSR1)
        said = [process.communicate(timeout=120)[1].decode() for process in (first, second)]
    assert (first.returncode, second.returncode) == (138, 138), said
    assert "interrupted; `hjepa-train run ... --resume auto` continues from the last checkpoint" in said[0]
    saved = latest(tmp_path / "tiny" / "checkpoints")
    assert saved is not None
    assert saved.name == f"step-{rows(config)[-1]['step'] + 1:08}"


@pytest.mark.slow
def test_torchrun_starts_the_ranks_and_one_of_them_prints(shards: Path, tmp_path: Path) -> None:
    if not no_network_namespaces():
        pytest.skip("test_nodes.py starts ranks by torchrun, on two nodes")
    config = tiny_run(shards, tmp_path)
    command = [TORCHRUN, "--nproc-per-node", "2", "-m", "hjepa_train", "run", str(config)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.count("report.md") == 1
    assert len(rows(config)) == STEPS


def test_of_two_ranks_with_the_same_error_one_prints_it(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path)
    train(load_run_config(config), stop_after=1)
    port = free_port()
    with start(config, 0, port) as first, start(config, 1, port) as second:
        said = [process.communicate(timeout=120)[1].decode() for process in (first, second)]
    assert (first.returncode, second.returncode) == (2, 2)
    assert said[0].startswith("rank 0: error: ")
    assert "holds checkpoints up to step-00000001" in said[0]
    assert said[1] == ""
