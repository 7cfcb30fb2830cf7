"""The commands: tables for people; what is wrong is one line on stderr and exit code 2."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.loader.loader import open_loader
from hjepa_shards.mixture.mixture import load_mixture_file
from hjepa_shards.shards.manifest import load_manifest
from tests.conftest import Command
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.verifying.test_verify_split import flip
from tests.processes import running

HJEPA_SHARDS = str(Path(sys.executable).parent / "hjepa-shards")
POWERLESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def refused(result: tuple[int, str, str], *said: str) -> None:
    code, _, err = result
    assert code == 2, result
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(text in err for text in said), err


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "digits" / "train"))


def yaml_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    return path


def test_build_info_verify_and_plan_end_well(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("build", "digits", "--out", ".", "--limit", 100, "--samples-per-shard", 32)
    assert code == 0
    assert "digits/train" in out
    assert "digits/test" in out
    code, out, _ = command("info", tmp_path)
    assert code == 0
    assert "100" in out
    code, out, _ = command("info", tmp_path / "digits" / "test")
    assert "mean" in out
    code, out, _ = command("verify", tmp_path)
    assert (code, out.count("right")) == (0, 2)
    mix = yaml_of(tmp_path, f"root: {tmp_path}\nstrategy: concat\nsources: [{{name: digits}}]\n")
    code, out, _ = command("plan", mix, "--epochs", 3, "--global-batch", 20)
    assert code == 0
    assert "15 steps" in out
    assert command("sources")[0] == 0


def test_verify_names_lost_samples_and_ends_with_1(command: Command, split: Path) -> None:
    flip(split / "digits-train-000000.tar", 530)
    code, out, _ = command("verify", split)
    assert code == 1
    assert "1 samples lost: 0" in " ".join(out.split())


def test_names_with_brackets_are_shown_as_they_are(command: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    name = "[red]not an [image].png"
    shutil.copy(__file__, raw / name)
    Image.new("RGB", (8, 8)).save(raw / "image.png")
    out_folder = tmp_path / "[bold]" / "x[" / "]"  # "[/]" would even be an error of the terminal library
    code, out, _ = command("build", "folder", "--raw", raw, "--out", out_folder, "--samples-per-shard", 8)
    assert code == 3
    assert f"excluded {name}: " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "cifar"], ["'cifar'", "cifar10"]),
        (["build", "digits", "--split", "dev"], ["'dev'", "train"]),
        (["build", "cifar10", "--raw", "/nonexistent"], ["/nonexistent", "no such folder"]),
        (["build", "cifar10"], ["--raw"]),
        (["build", "digits", "--raw", "/tmp"], ["--raw"]),
        (["build", "folder", "--raw", "/nonexistent"], ["/nonexistent"]),
        (["build", "digits", "--limit", "0"], ["--limit", "0 found"]),
        (["build", "digits", "--shorter-side", "64"], ["--shorter-side", "--pixels"]),
        (["build", "digits", "--pixels", "keep", "--shorter-side", "64"], ["keep", "shorter_side"]),
        (["build", "digits", "--pixels", "jpeg", "--quality", "500"], ["quality", "500"]),
        (["build", "digits", "--out", "/dev/null"], ["/dev/null"]),
        (["verify", "/nonexistent"], ["/nonexistent", "manifest.json"]),
        (["info", "/nonexistent"], ["/nonexistent"]),
        (["index", "/nonexistent"], ["/nonexistent", "*.tar"]),
        (["plan", "/nonexistent.yaml"], ["/nonexistent.yaml"]),
    ],
)
def test_wrong_arguments_are_one_line(command: Command, tmp_path: Path, arguments: list[str], said: list[str]) -> None:
    out = [] if "--out" in arguments or arguments[0] != "build" else ["--out", str(tmp_path)]
    refused(command(*arguments, *out), *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("sources: [{name: digits, wieght: 1}]", ["sources.0.wieght", "did you mean `weight`?"]),
        ("sources: [{name: digits, weight: -1}]", ["weight", "-1"]),
        ("sources: [{name: digits, weight: 0}]", ["weight"]),
        ("sources: [{name: digits}]", ["digits", "weight"]),
        ("sources: [{name: digitz, weight: 1}]", ["digitz", "digits/train"]),
        ("sources: []", ["sources"]),
        ("sources: [{name: digits, weight: 1}]\nstrateggy: x", ["strateggy", "did you mean `strategy`?"]),
        ("sources: [{name: digits, weight: 1}]\norder: {lanes: 0}", ["order.lanes"]),
        ("sources: {", ["not YAML"]),
    ],
)
def test_wrong_mixtures_are_one_line(
    command: Command, shards: Path, tmp_path: Path, data: str, said: list[str]
) -> None:
    path = yaml_of(tmp_path, f"root: {shards}\nstrategy: weighted\n{data}\n")
    refused(command("plan", path), "mix.yaml", *said)


@pytest.mark.parametrize("numbers", ["epochs: 0", "epochs: many", "global_batch: -3", "global_batch: 2.5"])
def test_wrong_numbers_of_a_run_are_one_line(command: Command, shards: Path, tmp_path: Path, numbers: str) -> None:
    data = f"data: {{root: {shards}, strategy: concat, sources: [{{name: digits}}]}}"
    refused(command("plan", yaml_of(tmp_path, f"{data}\ntraining: {{{numbers}}}\n")), "number expected")


def test_a_plan_of_a_run_that_says_no_epochs_is_of_one(command: Command, shards: Path, tmp_path: Path) -> None:
    data = f"data: {{root: {shards}, strategy: balanced, sources: [{{name: digits}}], epoch_samples: 64}}\n"
    note = "no training.epochs there: one epoch is planned"
    for training, is_noted in (("", False), ("training: {epochs: 2}", False), ("training: {global_batch: 8}", True)):
        code, out, _ = command("plan", yaml_of(tmp_path, data + training))
        assert (code, note in " ".join(out.split())) == (0, is_noted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("traning: {epochs: 3}", "unknown key `traning`; did you mean `training`?"),
        ("training: {globl_batch: 64}", "`training.globl_batch`; did you mean `training.global_batch`?"),
        ("training: {epoch: 3}", "`training.epoch`; did you mean `training.epochs`?"),
    ],
)
def test_a_plan_of_misspelt_numbers_is_refused(
    command: Command, shards: Path, tmp_path: Path, content: str, said: str
) -> None:
    data = f"data: {{root: {shards}, strategy: balanced, sources: [{{name: digits}}]}}"
    refused(command("plan", yaml_of(tmp_path, f"{data}\n{content}\n")), said)


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, split: Path) -> None:
    """By a process without the rights that root has over other people's files."""
    locked = tmp_path / "locked"
    (locked / "inner").mkdir(parents=True)
    locked.chmod(0)
    try:
        for arguments in (["build", "folder", "--raw", locked, "--out", tmp_path / "out"], ["verify", tmp_path]):
            ended = subprocess.run([*POWERLESS, HJEPA_SHARDS, *map(str, arguments)], capture_output=True, text=True)
            assert (ended.returncode, ended.stdout.strip()) == (2, "")
            assert re.fullmatch(r"error: .*locked.*Permission denied.*\n", ended.stderr)
    finally:
        locked.chmod(0o700)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_says_how_to_continue(tmp_path: Path, workers: int) -> None:
    """While an image is read that never ends, here or in a worker: in place of it, a pipe that nothing writes to."""
    (tmp_path / "raw").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "raw" / name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sitecustomize.py").write_text(_READS_A_PIPE.format(pipe=str(tmp_path / "pipe")))
    signals = (
        20 if workers == 1 else 1
    )  # one right before a read begins is received at the next; workers are told again
    stderr = _interrupted(tmp_path, signals, "--samples-per-shard", "1", "--workers", str(workers))
    assert b"interrupted; the same command continues with what is not done yet" in stderr
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("seconds", [0.7, 2])
def test_ctrl_c_ends_the_workers_too_from_the_first_second_on(tmp_path: Path, seconds: float) -> None:
    """A terminal sends it to all processes of a command."""
    out = ["--out", str(tmp_path), "--samples-per-shard", "50", "--workers", "2"]
    with running([HJEPA_SHARDS, "build", "scattered", *out], start_new_session=True) as process:
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        give_up = time.monotonic() + 10
        while _group_lives(process.pid):
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert not list(tmp_path.rglob("*.tmp"))
    if b"interrupted" in stderr:  # else: Python itself was not up yet, or the build was done
        assert process.returncode == 130
        assert b"Traceback" not in stderr


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


_READS_A_PIPE = """
from pathlib import Path
read_bytes = Path.read_bytes
Path.read_bytes = lambda path: read_bytes(Path({pipe!r}) if path.name == "a.png" else path)
"""
"""What every process of Python runs first that finds it as `sitecustomize`."""


def _interrupted(folder: Path, signals: int, *options: str) -> bytes:
    """What a build says that reads a pipe and receives at most this many signals in a minute."""
    command = [HJEPA_SHARDS, "build", "folder", "--raw", str(folder / "raw"), "--out", str(folder / "out"), *options]
    variables = {**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    with running(command, env=variables) as process:
        writer = _opened_for_writing(folder / "pipe", process)
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, stderr = process.communicate(timeout=60 / signals)
                break
        else:
            raise AssertionError(f"{signals} signals and no end")
        os.close(writer)
    assert process.returncode == 130
    return stderr


def _opened_for_writing(pipe: Path, process: subprocess.Popen[bytes]) -> int:
    """A descriptor, once the process reads."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nothing reads yet
            time.sleep(0.01)
    raise AssertionError(process.communicate())


def test_a_plan_proves_the_order_that_a_loader_delivers(command: Command, shards: Path, tmp_path: Path) -> None:
    data = f"{{root: {shards}, strategy: balanced, sources: [{{name: digits}}, {{name: photos}}], image_size: 8}}"
    config = yaml_of(tmp_path, f"run: {{seed: 7}}\ndata: {data}\n")
    with open_loader(load_mixture_file(config), seed=7, global_batch=50) as loader:
        proof = f"{[next(loader) for _ in range(6)][-1].proof:032x}"
    code, out, _ = command("plan", config, "--proof", 300)
    assert (code, out) == (0, f"order proof after 300 images: {proof}\n")
    code, out, _ = command("plan", config, "--proof", 300, "--expect", proof)
    assert (code, out) == (0, f"order proof after 300 images: {proof} as expected\n")
    code, out, _ = command("plan", config, "--proof", 299, "--expect", proof)
    assert code == 1
    assert f"{proof} reported" in out
    refused(command("plan", config, "--expect", proof), "--proof IMAGES")


def test_a_damaged_manifest_is_one_line(command: Command, split: Path) -> None:
    flip(split / "manifest.json", 300)
    for name in ("info", "verify"):
        refused(command(name, split), "manifest.json", "checksum")


def test_a_manifest_that_is_not_of_these_shards_is_found(command: Command, split: Path, shards: Path) -> None:
    shutil.copy(shards / "digits" / "test" / "manifest.json", split / "manifest.json")
    code, out, _ = command("verify", split)
    assert code == 1
    assert "is missing" in out
    assert "is not in the manifest" in out


def test_a_truncated_pickle_is_one_line_and_nothing_is_half_written(command: Command, tmp_path: Path) -> None:
    raw = tmp_path / "cifar-10-batches-py"
    raw.mkdir()
    for name in ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (raw / name).write_bytes(b"\x80\x02}q\x01(U\x05label")
    refused(command("build", "cifar10", "--raw", raw, "--out", tmp_path / "out"), "data_batch_1", "cut short")
    assert not (tmp_path / "out").exists()


def test_a_build_under_way_keeps_others_out(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "train"
    code = (
        "import sys, pathlib\nfrom hjepa_shards.base.atomic_files import exclusive\n"
        f"folder = pathlib.Path({str(folder)!r}) / '.journal'\nfolder.mkdir(parents=True)\n"
        "with exclusive(folder, ''): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused(command("build", "digits", "--split", "train", "--out", tmp_path), "another process")
        other.kill()


def test_a_full_disk_is_one_line_and_the_same_command_continues_after_room_was_made(
    small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(1_850_000))
    out = small_disk / "shards"
    command = [sys.executable, "-c", "from hjepa_shards.cli import main; main()", "build", "digits", "--split", "train"]
    command += ["--limit", "400", "--samples-per-shard", "60", "--out"]

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "HJEPA_TRACEBACK"}
        return subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment, check=False)

    full = run(out)
    assert full.returncode == 2, full.stderr
    assert full.stderr.startswith("error: ")
    assert full.stderr.count("\n") == 1
    assert "No space left" in full.stderr
    assert "make room" in full.stderr
    assert not (out / "digits" / "train" / "manifest.json").exists()
    assert not list(out.rglob("*.tmp"))
    finished = {path.stem for path in out.rglob(".journal/digits*.json")}
    assert finished <= {path.stem for path in out.rglob("*.tar")}
    (small_disk / "ballast").unlink()
    assert run(out).returncode == 0
    options = BuildOptions(limit=400, samples_per_shard=60)
    build("digits", raw=None, out=tmp_path / "elsewhere", splits=("train",), options=options)
    assert files_of(out) == files_of(tmp_path / "elsewhere")
    assert load_manifest(out / "digits" / "train").num_samples == 400
