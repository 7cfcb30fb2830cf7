import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train.checkpoints.checkpoint_files import (
    CheckpointError,
    best,
    choose,
    compare_recipe,
    identity,
    latest,
    load,
    read_state,
    recipe_facts,
    recover,
    restore_model,
    save,
)


def save_filled(folder: Path, step: int, numel: int = 64, keep: int = 2) -> Path:
    """A checkpoint in which everything says `step`."""
    filled = torch.full((numel,), float(step))
    return save(
        folder,
        step,
        model={"w": filled},
        optimizer={"state": {0: {"m": filled}}},
        state={"seed": step},
        keep=keep,
    )


def save_probed(folder: Path, step: int, value: float | None, keep: int = 1) -> Path:
    filled = torch.full((64,), float(step))
    state = {"seed": step, "probe": {} if value is None else {"knn_target": value, "knn_online": -value}}
    model, optimizer = {"w": filled}, {"state": {0: {"m": filled}}}
    return save(folder, step, model=model, optimizer=optimizer, state=state, keep=keep, keep_best="knn_target")


def assert_is_filled(path: Path, step: int) -> None:
    loaded = load(path)
    assert loaded.step == loaded.state["step"] == loaded.state["seed"] == step
    assert loaded.model["w"].eq(step).all()
    assert loaded.optimizer["state"][0]["m"].eq(step).all()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "transposed": torch.randn(3, 4).T,
        "part": torch.randn(10)[2:4],
        "empty": torch.zeros(0, 3),
    }
    state = {"loader": {"position": 10**15, "proof": 2**127 + 1}, "alarms": [0.1, None, "x"], "config": "ab"}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = save(tmp_path, 12, model=model, optimizer=optimizer, state=state)
    loaded = load(path)
    assert path == loaded.path == tmp_path / "step-00000012" == latest(tmp_path)
    assert loaded.model.keys() == model.keys()
    assert all(torch.equal(loaded.model[key], model[key]) for key in model)
    assert all(loaded.model[key].dtype == model[key].dtype for key in model)
    assert loaded.optimizer == optimizer
    assert loaded.state == read_state(path) == {**state, "step": 12}
    assert names(path) == ["files.json", "model.safetensors", "optimizer.pt", "state.json"]


class Tied(nn.Module):
    counts: Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    ours, theirs = Tied(), Tied()
    ours.counts += 5
    restored = load(save(tmp_path, 1, model=ours.state_dict(), optimizer={}, state={})).model
    before = [parameter.data_ptr() for parameter in theirs.parameters()]
    restore_model(theirs, restored, tmp_path)
    assert theirs.second.weight is theirs.first.weight
    assert [parameter.data_ptr() for parameter in theirs.parameters()] == before
    assert all(torch.equal(theirs.state_dict()[key], value) for key, value in ours.state_dict().items())


def test_training_continues_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, range(3))
    path = save(tmp_path, 3, model=model.state_dict(), optimizer=optimizer.state_dict(), state={})
    expected = train(model, optimizer, range(3, 8))

    fresh = Tied()
    checkpoint = load(path)
    restore_model(fresh, checkpoint.model, path)
    resumed = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    resumed.load_state_dict(checkpoint.optimizer)
    assert train(fresh, resumed, range(3, 8)) == expected


def test_the_newest_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save_filled(tmp_path, step)
    assert names(tmp_path) == ["step-00000002", "step-00000030"]
    save_filled(tmp_path, 31, keep=1)
    assert names(tmp_path) == ["step-00000031"]
    with pytest.raises(ValueError, match="at least 1"):
        save_filled(tmp_path, 32, keep=0)


def test_a_step_saved_again_is_replaced_and_later_steps_are_given_up(tmp_path: Path) -> None:
    for step in (10, 20):
        save_filled(tmp_path, step)
    save(tmp_path, 10, model={"w": torch.ones(1)}, optimizer={}, state={"seed": "again"})
    assert names(tmp_path) == ["step-00000010"]
    assert load(tmp_path / "step-00000010").state["seed"] == "again"


def test_steps_of_more_than_eight_digits_are_the_latest(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save_filled(tmp_path, step)
    assert latest(tmp_path) == tmp_path / "step-100000000"


def test_a_folder_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    (tmp_path / "notes").mkdir()
    assert latest(tmp_path) is None
    recover(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "files.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_refused_naming_the_one_before(tmp_path: Path, name: str, how: str) -> None:
    save_filled(tmp_path, 1)
    path = save_filled(tmp_path, 2)
    file = path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content if how == "flipped" else content[:-5])
    with pytest.raises(CheckpointError, match=r"step-00000002: damaged: .*step-00000001"):
        load(path)
    assert_is_filled(tmp_path / "step-00000001", 1)


def test_a_damaged_first_checkpoint_has_none_before_it(tmp_path: Path) -> None:
    path = save_filled(tmp_path, 1)
    (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none before it"):
        load(path)


def test_a_missing_checkpoint_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    save_filled(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no such checkpoint; here: step-00000001"):
        load(tmp_path / "step-00000002")


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    path = save_filled(tmp_path, 1)
    (path / "state.json").write_text(json.dumps({"format": 99, "step": 1}))
    with pytest.raises(CheckpointError, match="format 1 expected, 99 found"):
        read_state(path)


def test_other_weights_are_refused_compactly(tmp_path: Path) -> None:
    weights = {f"extra.{index}": torch.zeros(1) for index in range(9)}
    weights |= {"first.weight": torch.zeros(5, 5), "second.weight": torch.zeros(5, 5)}
    weights |= {"first.bias": torch.zeros(4, dtype=torch.float64), "counts": torch.zeros(3, dtype=torch.int64)}
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ResumeMismatch) as caught:
        restore_model(model, weights, tmp_path)
    message = str(caught.value)
    assert "1 missing: second.bias" in message
    assert "9 unexpected: extra.0, extra.1, extra.2 and 6 more" in message
    assert "first.weight (float32[5, 5] saved, float32[4, 4] here)" in message
    assert "first.bias (float64[4] saved, float32[4] here)" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_recipe_differs_by_what_it_names() -> None:
    ours = recipe_facts(device=torch.device("cpu"), world_size=2, eager=True)
    assert compare_recipe(ours, json.loads(json.dumps(ours))) == []
    assert compare_recipe({**ours, "threads": -1}, ours) == [f"threads: -1 saved, {ours['threads']} here"]
    assert compare_recipe({}, {"eager": True}) == ["eager: nothing saved, True here"]


class Killed(BaseException):
    """Like kill -9: nothing after it runs, no cleanup either."""


class MortalDisk:
    """Kills at the n-th call that changes the disk, once `calls_left` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls_left = 1000
        for module, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self._killing(getattr(module, name)))

    def _killing(self, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    def each_kill(self, start: Path, work: Callable[[Path], Any]) -> Iterator[Path]:
        """A copy of `start` for each call at which `work` on it can be killed, as that kill leaves it."""
        for num_calls in range(100):
            self.calls_left = 1000
            folder = shutil.copytree(start, start.with_name(f"killed-{num_calls}"))
            self.calls_left = num_calls
            try:
                work(folder)
            except Killed:
                self.calls_left = 1000
                yield folder
            else:
                assert num_calls > 8
                return
        pytest.fail("the work never ended")


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_before_any_call_to_the_disk_leaves_a_good_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    start = tmp_path / "start"
    for earlier in (1, 2):
        save_filled(start, earlier, keep=1 if step == 2 else 2)
    for folder in MortalDisk(monkeypatch).each_kill(start, lambda folder: save_filled(folder, step)):
        recover(folder)
        found = latest(folder)
        assert found is not None
        assert_is_filled(found, int(found.name.removeprefix("step-")))
        assert not [name for name in names(folder) if name.startswith(".")]
        save_filled(folder, step)
        assert_is_filled(folder / f"step-{step:08d}", step)


@pytest.mark.parametrize("value", [40.0, 60.0])
def test_a_kill_before_any_call_to_the_disk_leaves_the_best_or_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    start = tmp_path / "start"
    for step, earlier in ((1, 50.0), (2, 30.0)):
        save_probed(start, step, earlier)
    values = []
    for folder in MortalDisk(monkeypatch).each_kill(start, lambda folder: save_probed(folder, 3, value)):
        recover(folder)
        found = best(folder, "knn_target")
        assert found is not None
        assert_is_filled(found[0], 1 if found[1] == 50 else 3)
        values.append(found[1])
        save_probed(folder, 3, value)
        assert names(folder) == (["step-00000003"] if value == 60 else ["step-00000001", "step-00000003"])
    assert values == sorted(values)
    assert set(values) == {50.0, max(50.0, value)}


def save_and_be_killed(folder: Path, num_kills: int) -> None:
    """Forks savers and kills them; in a process of its own, so that torch is imported once and has one thread."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    step = 0
    for _ in range(num_kills):
        saver = os.fork()
        if saver == 0:
            for next_step in range(step + 1, step + 1000):
                save_filled(folder, next_step, numel=4096)
                save_filled(folder, next_step, numel=4096)
            os._exit(0)
        while latest(folder) in (None, folder / f"step-{step:08d}"):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(saver, signal.SIGKILL)
        assert os.waitpid(saver, 0)[1] == signal.SIGKILL
        recover(folder)
        found = latest(folder)
        assert found is not None
        assert int(found.name.removeprefix("step-")) > step
        step = int(found.name.removeprefix("step-"))
        assert_is_filled(found, step)


def test_a_process_killed_at_random_moments_leaves_a_good_latest(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=save_and_be_killed, args=(tmp_path, 20))
    process.start()
    process.join(timeout=120)
    process.kill()
    assert process.exitcode == 0


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("part", ["model", "optimizer", "state"])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_of_the_new(tmp_path: Path, part: str) -> None:
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}, "state": {}}
    parts[part] = {"big": "x" * 4_000_000 if part == "state" else torch.zeros(1_000_000)}
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        folder = disk / "checkpoints"
        save_filled(folder, 1)
        with pytest.raises(CheckpointError, match=r"No space left on device.*step-00000001") as caught:
            save(folder, 2, model=parts["model"], optimizer=parts["optimizer"], state=parts["state"])
        assert str(folder / "step-00000002") in str(caught.value)
        if part != "state":
            assert "3.8 MiB needed" in str(caught.value)
        assert "1.0 MiB free" in str(caught.value)
        assert names(folder) == ["step-00000001"]
        assert_is_filled(folder / "step-00000001", 1)
        save_filled(folder, 2)
        assert_is_filled(folder / "step-00000002", 2)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_file_over_the_limit_leaves_the_last_good_checkpoint(tmp_path: Path, part: str) -> None:
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}}
    parts[part] = {"big": torch.zeros(1_000_000)}
    save_filled(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save(tmp_path, 2, model=parts["model"], optimizer=parts["optimizer"], state={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]
    assert_is_filled(tmp_path / "step-00000001", 1)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="there is no checkpoint yet"):
        save_filled(tmp_path / "checkpoints", 1)


def test_the_best_by_a_probe_stays_besides_the_newest_ones(tmp_path: Path) -> None:
    for step, value in ((1, 20.0), (2, 45.5), (3, None), (4, 45.5), (5, 30.0), (6, None)):
        save_probed(tmp_path, step, value, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert best(tmp_path, "knn_target") == (tmp_path / "step-00000002", 45.5)
    assert best(tmp_path, "knn_online") == (tmp_path / "step-00000005", -30.0)
    assert best(tmp_path, "ridge_target") is None
    save_probed(tmp_path, 7, 46.0, keep=2)
    assert names(tmp_path) == ["step-00000006", "step-00000007"]
    save_probed(tmp_path, 3, 1.0, keep=2)  # the run continues from before: what came later was given up
    assert names(tmp_path) == ["step-00000003"]


def test_a_damaged_checkpoint_is_not_the_best_and_a_later_one_does_not_count(tmp_path: Path) -> None:
    for step, value in ((1, 20.0), (2, 45.5), (3, 30.0)):
        save_probed(tmp_path, step, value, keep=3)
    assert best(tmp_path, "knn_target", up_to=1) == (tmp_path / "step-00000001", 20.0)
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    assert best(tmp_path, "knn_target") == (tmp_path / "step-00000003", 30.0)


def test_a_checkpoint_is_chosen_by_a_word_a_step_or_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(InputError, match="run: no checkpoint yet"):
        choose(folder, "best", "knn_target")
    for step, value in ((1, 20.0), (2, 45.5), (3, 30.0)):
        save_probed(folder, step, value, keep=3)
    assert choose(folder, "latest", None) == folder / "step-00000003"
    assert choose(folder, "best", "knn_target") == folder / "step-00000002"
    assert choose(folder, "step-00000001", None) == folder / "step-00000001"
    assert choose(tmp_path, str(folder / "step-00000001"), None) == folder / "step-00000001"
    with pytest.raises(
        InputError, match=r"probed for ridge_x expected, .* step-00000001, step-00000002, step-00000003"
    ):
        choose(folder, "best", "ridge_x")
    with pytest.raises(InputError, match=r"probed for training.keep_best expected"):
        choose(folder, "best", None)
    for wrong in ("newest", "step-00000009", str(folder), str(tmp_path)):
        with pytest.raises(InputError, match=r"--checkpoint .* expected, none found; here: step-00000001, .*3$"):
            choose(folder, wrong, None)


def test_identities_tell_checkpoints_apart(tmp_path: Path) -> None:
    first, second = save_probed(tmp_path / "a", 1, 20.0), save_probed(tmp_path / "b", 1, 21.0)
    assert identity(first) == identity(save_probed(tmp_path / "c", 1, 20.0))
    assert identity(first) != identity(second)
