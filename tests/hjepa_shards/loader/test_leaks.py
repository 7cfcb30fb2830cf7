"""What a loader leaves: nothing. Memory, threads, open files, shared memory, over passes, errors and Ctrl-C."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError, TooMuchDamage
from hjepa_shards.loader.loader import open_loader
from hjepa_shards.loader.shard_prefetch import lanes_of
from tests.hjepa_shards.loader.test_loader import copied, mix  # noqa: F401 (a fixture)
from tests.hjepa_shards.loader.test_remote_store import at, server  # noqa: F401 (a fixture)
from tests.hjepa_shards.storage.bad_server import Server
from tests.processes import running

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc: what is open cannot be seen")

PASSES = """
import sys
from pathlib import Path
from tests.hjepa_shards.loader.test_loader import mix
from hjepa_shards.loader.loader import open_loader

def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

with open_loader(mix(Path(sys.argv[1])), seed=0, global_batch=50) as loader:
    for number in range(1, 11):
        for _ in range(10):
            next(loader)
        if number in (1, 10):
            print(resident())
"""

INTERRUPTED = """
import sys
from pathlib import Path
from tests.hjepa_shards.loader.test_loader import mix
from hjepa_shards.loader.loader import open_loader

with open_loader(mix(Path(sys.argv[1])), seed=0, global_batch=50) as loader:
    print("begun", flush=True)
    while True:
        next(loader)
"""


def open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return {path for path in found if path.endswith((".tar", ".index", ".part")) or "hjepa" in Path(path).name}


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hjepa-")]


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    shared, files = set(os.listdir("/dev/shm")), open_files()
    assert not our_threads()
    yield
    assert not our_threads()
    gc.collect()  # an error that was raised holds on to the frames it came through
    assert not open_files() - files
    assert not list(scratch.iterdir())
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "hjepa" in name]


def test_memory_after_ten_passes_is_that_after_one(shards: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", PASSES, str(shards)], check=True, capture_output=True, text=True)
    first, last = map(int, ended.stdout.split())
    assert last < 1.05 * first, f"{first} kB after the first pass, {last} kB after the tenth"


@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left_after_a_local_run(shards: Path) -> None:
    with open_loader(mix(shards), seed=0, global_batch=50) as loader:
        for _ in range(5):
            next(loader)
        assert our_threads()
        assert open_files()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left_after_a_remote_run(server: Server, tmp_path: Path, cached: bool) -> None:  # noqa: F811
    with open_loader(at(server.url(), tmp_path / "cache" if cached else None), seed=0, global_batch=20) as loader:
        next(loader)


@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left_of_a_loader_that_cannot_be_opened(server: Server) -> None:  # noqa: F811
    mixture = at(server.url())  # digits are there, photos are compressed
    for name in [name for name in server.files if name.startswith("photos") and name.endswith(".tar")]:
        server.files[f"{name}.zst"] = server.files.pop(name)
    with pytest.raises(InputError, match="cannot be read by range"):
        open_loader(mixture, seed=0, global_batch=20)
    with pytest.raises(InputError, match="a multiple of the 3 ranks"):
        open_loader(mixture, seed=0, global_batch=20, world=3)


@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left_after_an_error(copied: Path) -> None:  # noqa: F811
    for shard in (copied / "digits" / "train").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(TooMuchDamage), open_loader(mix(copied), seed=0, global_batch=50) as loader:
        next(loader)


def test_ctrl_c_ends_the_process_at_once(shards: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(shards)]
    with running(command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in stderr
    assert process.returncode in (1, -signal.SIGINT)


def test_a_rank_fetches_its_own_lanes() -> None:
    assert [list(lanes_of(rank, 4, 2)) for rank in range(4)] == [[0], [0], [1], [1]]
    assert [list(lanes_of(rank, 2, 4)) for rank in range(2)] == [[0, 1], [2, 3]]
    assert list(lanes_of(1, 3, 2)) == [0, 1]
