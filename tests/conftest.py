"""What tests share: a few tiny built splits, and where the real data is."""

import contextlib
import multiprocessing.forkserver
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.cli import main
from tests.processes import FORKED_WITH

SAMPLES_PER_SHARD = 48
Command = Callable[..., tuple[int, str, str]]


def pytest_configure(config: pytest.Config) -> None:
    # a shell's job in the background ignores Ctrl-C, and so would be all that the tests start
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # one server of processes for each worker of xdist, from its start on: what it has imported (PyTorch takes seconds),
    # each rank and each worker of a build has; a test that starts it later starts it with less
    if hasattr(config, "workerinput"):
        multiprocessing.set_forkserver_preload(FORKED_WITH)
        multiprocessing.forkserver.ensure_running()
    # hjepa_shards.images.image_formats says so at its import; pytest forgets that before each test
    config.addinivalue_line("filterwarnings", r"ignore:::PIL\.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Half of xdist's workers, which get equal runs of the list, begin with the slow tests.

    A slow test that comes last keeps one worker busy while the others have nothing left; many of them wait more than
    they compute, so the other half computes meanwhile.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    starters = max(1, workers // 2)
    shares = [slow[number::starters] for number in range(starters)] + [[]] * (workers - starters)
    run = -(-len(items) // workers)
    items[:] = []
    for share in shares:
        taken = max(0, run - len(share))
        items += share + quick[:taken]
        quick = quick[taken:]
    items += quick


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of built splits, for reading only: digits (train, test), photos (train), scattered (train)."""
    root = tmp_path_factory.mktemp("shards")
    options = BuildOptions(samples_per_shard=SAMPLES_PER_SHARD, limit=200)
    build("digits", raw=None, out=root, splits=("train", "test"), options=options)
    build("scattered", raw=None, out=root, splits=("train",), options=options)
    build("photos", raw=None, out=root, splits=("train",), options=BuildOptions(samples_per_shard=40, limit=100))
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets that HJEPA_TEST_DATA names."""
    folder = os.environ.get("HJEPA_TEST_DATA")
    if not folder:
        pytest.skip("HJEPA_TEST_DATA is not set: the folder with cifar10, odd, coco, ...")
    return Path(folder)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """hjepa-shards in this process: exit code, stdout, stderr."""
    return in_this_process("hjepa-shards", main, monkeypatch, capfd)


def in_this_process(
    name: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """A program, by its `main`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
