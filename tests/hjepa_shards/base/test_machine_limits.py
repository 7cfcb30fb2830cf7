"""What a process may use: control groups as containers have them, and a disk measured without a trace."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hjepa_shards.base import machine_limits

GIB = 2**30


def machine(tmp_path: Path, groups_of_process: str, files: dict[str, str]) -> tuple[Path, Path]:
    """(proc, cgroup) folders of a pretended machine."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(groups_of_process)
    groups.mkdir()
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text + "\n")
    return proc, groups


@pytest.mark.parametrize(
    ("groups_of_process", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),  # the group above limits too
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        ("0::/on/the/host\n", {"cpu.max": "200000 100000"}, 2),  # inside a container the path is not there
        ("0::/\n", {}, None),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "75000", "cpu,cpuacct/x/cpu.cfs_period_us": "25000"},
            3,
        ),
        ("3:cpuacct,cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "75000", "cpu/x/cpu.cfs_period_us": "25000"}, 3),
        ("3:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "25000"}, None),
        ("3:memory:/x\n0::/x\n", {"unified/x/cpu.max": "100000 100000"}, 1),
        ("0::/a\n", {"a/cpu.max": "what is this"}, None),
        ("garbage", {}, None),
    ],
)
def test_the_time_that_control_groups_grant(
    tmp_path: Path, groups_of_process: str, files: dict[str, str], quota: float | None
) -> None:
    found = machine_limits.cores(*machine(tmp_path, groups_of_process, files))
    assert found.quota == quota
    assert found.usable == (found.allowed if quota is None else min(found.allowed, quota))


@pytest.mark.parametrize(
    ("groups_of_process", "files", "limit"),
    [
        ("0::/a\n", {"a/memory.max": str(GIB // 2), "memory.max": "max"}, GIB // 2),
        ("0::/a\n", {"a/memory.max": "max"}, None),
        ("9:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("9:memory:/x\n", {"memory/x/memory.limit_in_bytes": str(GIB // 4)}, GIB // 4),
    ],
)
def test_the_memory_that_control_groups_grant(
    tmp_path: Path, groups_of_process: str, files: dict[str, str], limit: int | None
) -> None:
    found = machine_limits.memory(*machine(tmp_path, groups_of_process, files))
    assert found.limit == limit
    assert found.machine > GIB // 2


def test_cores_allowed_are_those_of_the_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from hjepa_shards.base.machine_limits import cores\n"
    done = subprocess.run([sys.executable, "-c", code + "print(cores().allowed)"], capture_output=True, check=True)
    assert done.stdout == b"1\n"
    assert machine_limits.cores().allowed <= machine_limits.cores().machine


def test_open_files_are_those_of_the_process() -> None:
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))\n"
        "from hjepa_shards.base.machine_limits import open_files\nprint(open_files().soft)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"200\n"


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    disk = machine_limits.measured(replace(machine_limits.disk_of(tmp_path / "not" / "there"), free_bytes=64 << 20))
    assert disk.folder == tmp_path
    assert disk.remark or (disk.read_bytes_per_s or 0) > 1e6
    assert list(tmp_path.iterdir()) == []
    assert machine_limits.disk_of(tmp_path).free_bytes > 0


def test_a_full_disk_is_not_written_to(tmp_path: Path) -> None:
    assert "full" in machine_limits.measured(replace(machine_limits.disk_of(tmp_path), free_bytes=1 << 20)).remark


def test_a_folder_that_cannot_be_written_is_a_remark() -> None:
    disk = machine_limits.Disk(folder=Path("/proc"), kind="proc", free_bytes=1 << 40)
    assert "not measured" in machine_limits.measured(disk).remark


def test_memory_that_looks_like_a_disk_is_called_memory() -> None:
    disk = machine_limits.disk_of(Path("/dev/shm"))
    if disk.kind != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    assert "memory" in machine_limits.measured(disk).remark


def test_a_measurement_killed_with_kill_9_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom hjepa_shards.base import machine_limits\nprint('begin', flush=True)\n"
        "while True: machine_limits.measured(machine_limits.disk_of(pathlib.Path(sys.argv[1])))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.5)
        assert any("(deleted)" in os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
