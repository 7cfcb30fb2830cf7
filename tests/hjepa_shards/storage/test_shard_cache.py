"""A cache that jobs share: it holds what was requested, is never too large, and kill -9 leaves nothing wrong."""

import errno
import functools
import hashlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.storage.shard_cache import ShardCache


def content(number: int, num_bytes: int = 1000) -> bytes:
    return random.Random(number).randbytes(num_bytes)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def admit(cache: ShardCache, data: bytes, sent: bytes | None = None) -> int | None:
    return cache.admit(sha256(data), len(data), lambda: pieces(data if sent is None else sent))


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + 300] for start in range(0, len(data), 300))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_what_was_admitted_is_there_for_everybody(tmp_path: Path) -> None:
    data = content(0)
    descriptor = admit(ShardCache(tmp_path / "cache", 5000), data)
    assert descriptor is not None
    os.close(descriptor)
    other = ShardCache(tmp_path / "cache", 5000)
    found = other.open(sha256(data))
    assert found is not None
    assert os.pread(found, 2000, 0) == data
    os.close(found)
    assert other.open(sha256(b"else")) is None


def test_what_another_job_has_just_finished_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, data, opened = ShardCache(tmp_path, 5000), content(0), []

    def other_job_is_faster(wanted: str) -> int | None:
        """It comes right after the first look."""
        opened.append(wanted)
        if len(opened) == 1:
            os.close(admit(ShardCache(tmp_path, 5000), data) or -1)
            return None
        return ShardCache.open(cache, wanted)

    monkeypatch.setattr(cache, "open", other_job_is_faster)
    found = cache.admit(sha256(data), len(data), lambda: pytest.fail("fetched again"))
    assert found is not None
    os.close(found)
    assert cache.num_bytes() == len(data)


def test_a_file_can_be_opened_from_the_moment_that_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waited for it may look before the one that fetched it does anything more."""
    cache, data, found, honest = ShardCache(tmp_path, 5000), content(0), list[int | None](), os.rename

    def rename_and_look(*paths: Any) -> None:
        honest(*paths)
        found.append(cache.open(sha256(data)))

    monkeypatch.setattr("hjepa_shards.storage.shard_cache.os.rename", rename_and_look)
    descriptors = [admit(cache, data), *found]
    assert len(descriptors) == 2
    for descriptor in descriptors:
        assert descriptor is not None
        assert os.pread(descriptor, 2000, 0) == data
        os.close(descriptor)


@pytest.mark.parametrize("sent", [b"", content(0)[:-1], content(0) + b"x", content(1)])
def test_other_bytes_than_requested_are_not_kept(tmp_path: Path, sent: bytes) -> None:
    cache = ShardCache(tmp_path, 5000)
    assert admit(cache, content(0), sent) is None
    assert names(tmp_path) == set()


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise OSError("the connection is gone")

    with pytest.raises(OSError, match="connection is gone"):
        ShardCache(tmp_path, 5000).admit("ab" * 32, 10, broken)
    assert names(tmp_path) == set()


def test_the_least_recently_used_make_room_and_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3500)
    for number in range(3):
        descriptor = admit(cache, content(number))
        assert descriptor is not None
        os.utime(descriptor, (number, number))
        if number:
            os.close(descriptor)
        else:
            pinned = descriptor  # the oldest is in use
    newest = admit(cache, content(3))
    assert newest is not None
    assert names(tmp_path) == {sha256(content(number)) for number in (0, 2, 3)}
    held = cache.open(sha256(content(2)))
    assert admit(cache, content(4)) is None  # all are in use
    assert cache.num_bytes() == 3000
    for descriptor in (pinned, newest, held):
        assert descriptor is not None
        os.close(descriptor)
    assert admit(cache, content(5, 4000)) is None  # larger than the cache: and nothing is lost for it


def test_a_file_on_its_way_takes_its_room_at_once_and_is_fetched_by_one(tmp_path: Path) -> None:
    cache, gate, began = ShardCache(tmp_path, 1500), threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        began.set()
        gate.wait(10)
        yield content(0)

    results: list[int | None] = []
    thread = threading.Thread(target=lambda: results.append(cache.admit(sha256(content(0)), 1000, slowly)))
    thread.start()
    assert began.wait(10)
    assert cache.num_bytes() == 1000
    assert ShardCache(tmp_path, 1500).admit(sha256(content(0)), 1000, slowly) is None
    assert admit(cache, content(1)) is None  # no room beside it
    waiting = threading.Thread(target=lambda: results.append(cache.admit(sha256(content(0)), 1000, slowly, wait=True)))
    waiting.start()
    began.clear()
    gate.set()
    thread.join()
    waiting.join()
    assert not began.is_set()  # who waited has fetched nothing
    assert results[1] is not None
    os.close(results[1])
    assert results[0] is not None
    os.close(results[0])


def test_a_full_disk_is_no_error(small_disk: Path) -> None:
    cache = ShardCache(small_disk / "cache", 10**9)
    assert admit(cache, content(0, 5_000_000)) is None
    assert names(small_disk / "cache") == set()
    descriptor = admit(cache, content(1, 100_000))
    assert descriptor is not None
    os.close(descriptor)


def test_a_place_that_cannot_be_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        ShardCache(tmp_path / "file" / "cache", 10)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a" * 63, "A" * 64, ".lock", ""])
def test_what_is_no_digest_is_the_name_of_no_file(tmp_path: Path, name: str) -> None:
    cache = ShardCache(tmp_path, 5000)
    for use in (cache.open, cache.forget, lambda name: cache.admit(name, 1, lambda: iter([b"x"]))):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            use(name)


def test_a_manifest_that_lies_empties_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by a size beyond the limit nor by one beyond the disk, and it is said once."""
    for limit, lie in ((2500, 2501), (10**18, 10**15)):
        cache = ShardCache(tmp_path, limit)
        for number in range(2):
            os.close(admit(cache, content(number)) or -1)
        for _ in range(3):
            assert cache.admit("ab" * 32, lie, lambda: pytest.fail("fetched")) is None
        assert names(tmp_path) == {sha256(content(number)) for number in range(2)}
        assert capsys.readouterr().err.count(f"note: data.cache {tmp_path}: ") == 1


def test_what_cannot_make_enough_room_is_not_removed_for_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2500)
    os.close(admit(cache, content(0)) or -1)
    held = admit(cache, content(1))
    assert admit(cache, content(2, 2000)) is None
    assert names(tmp_path) == {sha256(content(0)), sha256(content(1))}
    os.close(held or -1)


def test_files_of_the_user_in_its_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(bytes(5000))
    (tmp_path / "thesis.part").write_bytes(bytes(5000))
    (tmp_path / "mine").mkdir()
    (tmp_path / ("ab" * 32)).symlink_to(tmp_path / "thesis.tex")
    cache = ShardCache(tmp_path, 1500)
    for number in range(3):
        os.close(admit(cache, content(number)) or -1)
    assert cache.open("ab" * 32) is None  # a link is nothing of ours
    assert {"thesis.tex", "thesis.part", "mine"} < names(tmp_path)
    assert (tmp_path / "thesis.tex").stat().st_size == 5000


def test_a_folder_that_fails_is_named_and_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ShardCache(tmp_path, 5000)

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hjepa_shards.storage.shard_cache.os.pwrite", fail)
    assert [admit(cache, content(number)) for number in range(3)] == [None] * 3
    assert names(tmp_path) == set()
    assert capsys.readouterr().err.count("Input/output error") == 1


LIMIT, FILE = 400_000, 60_000


def job(folder: Path, seed: int, steps: Any) -> None:
    """What a run does with its cache, without end."""
    cache, generator = ShardCache(folder, LIMIT), random.Random(seed)

    def slowly(data: bytes) -> Iterator[bytes]:
        for start in range(0, FILE, 4096):
            time.sleep(0.0005)
            yield data[start : start + 4096]

    while True:
        data = content(generator.randrange(12), FILE)
        sent = data if generator.random() > 0.1 else data[::-1]
        descriptor = cache.open(sha256(data)) or cache.admit(sha256(data), FILE, functools.partial(slowly, sent))
        if descriptor is not None:
            assert os.pread(descriptor, 2 * FILE, 0) == data, "wrong bytes"
            assert cache.num_bytes() <= LIMIT, "too large"
            os.close(descriptor)
        steps.value += 1


def test_four_jobs_share_a_cache_while_they_are_killed(tmp_path: Path) -> None:
    """kill -9 fifty times at random moments: never a wrong byte, never too much, and all others continue."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    generator = random.Random(0)
    jobs: list[tuple[Any, Any]] = []

    def start(number: int) -> None:
        steps = context.Value("q")
        process = context.Process(target=job, args=(tmp_path, number, steps), daemon=True)
        process.start()
        jobs.append((process, steps))

    try:
        for number in range(4):
            start(number)
        for kill in range(50):
            process, steps = jobs.pop(0)
            give_up, wanted = time.monotonic() + 60, generator.randrange(1, 8)
            while steps.value < wanted:  # it makes progress, whatever the dead held
                assert process.is_alive(), "failed"
                assert time.monotonic() < give_up, "stuck"
                time.sleep(0.002)
            time.sleep(generator.random() * 0.02)
            assert process.is_alive(), "failed"
            assert ShardCache(tmp_path, LIMIT).num_bytes() <= LIMIT
            process.kill()
            process.join()
            start(100 + kill)
    finally:
        for process, _ in jobs:
            process.kill()
            process.join()
    descriptor = admit(ShardCache(tmp_path, LIMIT), content(99, FILE))
    assert descriptor is not None
    os.close(descriptor)
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
    for name in names(tmp_path):
        assert sha256((tmp_path / name).read_bytes()) == name
