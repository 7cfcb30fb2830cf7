"""Files appear whole or not at all; one writer a folder."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hjepa_shards.base.atomic_files import exclusive, whole_file, write_atomically
from hjepa_shards.errors import InputError


def test_a_file_has_its_old_content_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_file(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_goes_wrong_while_a_file_is_sent_to_the_disk_is_said_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, failed = os.fsync, threading.Event()

    def once(descriptor: int) -> None:
        """As Linux does: the first flush says it, no later one."""
        if failed.is_set():
            return flush(descriptor)
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", once)
    with pytest.raises(InputError, match="a: cannot be written: Input/output error"), whole_file(tmp_path / "a"):
        assert failed.wait(10)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No space left.*make room.*same command again"), whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "missing" / "a", b"")


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom hjepa_shards.base.atomic_files import exclusive\n"
        f"with exclusive(pathlib.Path({str(tmp_path)!r}), 'busy'): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="busy"), exclusive(tmp_path, "busy"):
            pass
        other.kill()
    with exclusive(tmp_path, "busy"):
        pass


def test_a_lock_in_a_folder_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), exclusive(tmp_path / "no", "busy"):
        pass
