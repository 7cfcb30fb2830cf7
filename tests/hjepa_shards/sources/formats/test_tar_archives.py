"""Compressed and remote tars: one plain copy, made once, found again, shared, and refused before a disk is full."""

import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.formats import tar_archives
from hjepa_shards.sources.formats.tar_archives import look_at, make_copies, plain_tar
from hjepa_shards.sources.registry import open_split
from hjepa_shards.storage import remote_files
from hjepa_shards.storage.retry import Patience
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred

TARS = [tarred({f"{number:02d}.jpg": jpeg(number) for number in range(first, first + 6)}) for first in (0, 6)]


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


# ---- on a disk


def test_a_plain_tar_is_read_where_it_is(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar": TARS[0]})
    (archive,) = look_at([f"{tmp_path}/a.tar"])
    assert archive.copy == ""
    make_copies([archive], tmp_path / "scratch")
    assert plain_tar(archive, tmp_path / "scratch") == tmp_path / "a.tar"
    assert not (tmp_path / "scratch").exists()


def test_a_compressed_tar_is_copied_once_and_again_when_it_changed(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar": gzip.compress(TARS[0])})  # its name is wrong
    scratch = tmp_path / "scratch"
    (archive,) = look_at([f"{tmp_path}/a.tar"])
    path = plain_tar(archive, scratch)
    assert path.read_bytes() == TARS[0]
    before = path.stat().st_mtime_ns
    assert plain_tar(archive, scratch) == path
    assert path.stat().st_mtime_ns == before
    put(tmp_path, {"a.tar": zstd(TARS[1])})
    (changed,) = look_at([f"{tmp_path}/a.tar"])
    assert plain_tar(changed, scratch).read_bytes() == TARS[1]


def test_a_copy_that_was_broken_off_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    whole = gzip.compress(TARS[0])
    put(tmp_path, {"a.tar.gz": whole[:-20]})
    with pytest.raises(ShardError, match=r"a.tar.gz: cannot be decompressed \(cut short\); fetch it again"):
        plain_tar(look_at([f"{tmp_path}/a.tar.gz"])[0], tmp_path / "scratch")
    put(tmp_path, {"a.tar.gz": whole})
    (archive,) = look_at([f"{tmp_path}/a.tar.gz"])
    put(tmp_path / "scratch", {f".{archive.copy}.4711.tmp": b"left by a kill"})
    path = plain_tar(archive, tmp_path / "scratch")
    assert [entry.name for entry in sorted((tmp_path / "scratch").iterdir()) if not entry.name.endswith(".lock")] == [
        path.name
    ]


def _copy(archive: Any, scratch: Path, start: Any) -> None:
    start.wait()
    plain_tar(archive, scratch)


def test_processes_that_want_the_same_tar_make_one_copy(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar.zst": zstd(TARS[0])})
    (archive,) = look_at([f"{tmp_path}/a.tar.zst"])
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [context.Process(target=_copy, args=(archive, tmp_path / "scratch", start)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert plain_tar(archive, tmp_path / "scratch").read_bytes() == TARS[0]
    assert len(list((tmp_path / "scratch").glob("*.tar"))) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_too_little_room_is_refused_with_the_numbers_before_anything_is_written(
    small_disk: Path, tmp_path: Path
) -> None:
    put(tmp_path, {f"{n}.tar.gz": gzip.compress(os.urandom(17 << 20), 0) for n in range(2)})
    found = look_at([f"{tmp_path}/{n}.tar.gz" for n in range(2)])
    message = r"34\.00 MiB or more needed for plain copies of 2 .*32\.00 MiB free; make room or choose another disk"
    with pytest.raises(InputError, match=message):
        make_copies(found, small_disk / "scratch")
    assert list((small_disk / "scratch").iterdir()) == []


def test_a_bomb_stops_before_the_disk_is_full(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_archives, "_CHECKED_BYTES", 1 << 20)
    put(tmp_path, {"a.tar.gz": gzip.compress(bytes(1 << 27))})
    with pytest.raises(InputError, match=r"a.tar.gz: .* MiB and more when unpacked, .* free in .*; make room"):
        make_copies(look_at([f"{tmp_path}/a.tar.gz"]), small_disk / "scratch")
    assert list((small_disk / "scratch").glob("*.tar")) == list((small_disk / "scratch").glob(".*.tmp")) == []


# ---- at a URL


class Server:
    """A real HTTP server whose manners can be chosen. It counts requests for a file's bytes."""

    def __init__(self, folder: Path) -> None:
        self.ranges = True
        self.etag = '"1"'
        self.break_after: list[int] = []
        """Bytes after which the next answers break off."""
        self.refuse: list[int] = []
        """Status of the next answers."""
        self.gets = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                server.gets += 1
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                if server.refuse:
                    self.send_error(server.refuse.pop(0))
                    return
                path = folder / self.path.lstrip("/").partition("?")[0]
                if not path.is_file():
                    self.send_error(404)
                    return
                data, start = path.read_bytes(), 0
                span = self.headers.get("Range")
                if span and server.ranges:
                    first, _, last = span.removeprefix("bytes=").partition("-")
                    start, stop = int(first), int(last or len(data) - 1) + 1
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}")
                    data = data[start:stop]
                else:
                    self.send_response(200)
                if server.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", server.etag)
                self.end_headers()
                if body and server.break_after:
                    self.wfile.write(data[: server.break_after.pop(0)])
                    self.wfile.flush()
                    self.connection.close()
                elif body:
                    self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_files, "PATIENCE", Patience(first_wait_s=0.01))
    served = Server(tmp_path / "served")
    yield served
    served.close()


def test_tars_at_urls_are_fetched_once_and_read_at_random(tmp_path: Path, server: Server) -> None:
    put(tmp_path / "served", {"x-0.tar": TARS[0], "x-1.tar.zst": zstd(TARS[1])})
    split = open_split("webdataset", f"{server.url}/x-0.tar::{server.url}/x-{{1..1}}.tar.zst", "train")
    split.prepare(tmp_path / "scratch")
    fetched = server.gets
    read = {sample.name: split.read(sample) for sample in reversed(split.samples)}
    assert read == {f"{number:02d}.jpg": jpeg(number) for number in range(12)}
    assert server.gets == fetched
    split.prepare(tmp_path / "scratch")
    assert server.gets == fetched
    server.etag = '"2"'
    open_split("webdataset", f"{server.url}/x-0.tar", "train").prepare(tmp_path / "scratch")
    assert server.gets > fetched


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_continues_where_it_stopped(tmp_path: Path, server: Server, ranges: bool) -> None:
    put(tmp_path / "served", {"a.tar.gz": gzip.compress(TARS[0])})
    (archive,) = look_at([f"{server.url}/a.tar.gz"])
    server.ranges = ranges
    server.break_after = [300, 700, 0]
    assert plain_tar(archive, tmp_path / "scratch").read_bytes() == TARS[0]
    assert not server.break_after


def test_servers_that_are_busy_are_tried_again_and_others_are_not(tmp_path: Path, server: Server) -> None:
    put(tmp_path / "served", {"a.tar": TARS[0]})
    server.refuse = [503, 503, 500]
    (archive,) = look_at([f"{server.url}/a.tar"])
    server.refuse = [500, 503]
    assert plain_tar(archive, tmp_path / "scratch").read_bytes() == TARS[0]
    with pytest.raises(InputError, match=r"missing.tar: cannot be fetched \(answer 404\); check the address"):
        look_at([f"{server.url}/missing.tar"])
    server.refuse = [500] * 100
    with pytest.raises(InputError, match=r"a.tar: cannot be fetched \(answer 500\)"):
        look_at([f"{server.url}/a.tar"])
    assert len(server.refuse) == 100 - 2 * 12  # HEAD and GET, a dozen times


def test_no_server_at_the_address_and_unknown_protocols_are_one_line(server: Server) -> None:
    server.close()
    with pytest.raises(InputError, match=r"a.tar: cannot be fetched \(.*\); check the address"):
        look_at([f"{server.url}/a.tar"])
    with pytest.raises(InputError, match=r"nothere://x/a.tar: cannot be opened: Protocol not known"):
        look_at(["nothere://x/a.tar"])


# ---- in a build


def test_a_build_from_compressed_tars_is_the_one_from_plain_tars(tmp_path: Path) -> None:
    put(tmp_path / "plain", {f"{n}.tar": data for n, data in enumerate(TARS)})
    put(tmp_path / "packed", {"0.tar.zst": zstd(TARS[0]), "1.tgz": gzip.compress(TARS[1])})
    for raw, workers in (("plain", 1), ("packed", 2)):
        options = BuildOptions(samples_per_shard=4, workers=workers)
        build("webdataset", raw=tmp_path / raw, out=tmp_path / f"from_{raw}", options=options)
    assert files_of(tmp_path / "from_plain") == files_of(tmp_path / "from_packed")


def test_copies_without_a_builder_go_when_their_split_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJEPA_SCRATCH", str(tmp_path / "scratch"))
    put(tmp_path / "raw", {"0.tar.zst": zstd(TARS[0])})
    split = open_split("webdataset", tmp_path / "raw", "train")
    assert split.read(split.samples[3]) == jpeg(3)
    assert len(list((tmp_path / "scratch").glob("*/*.tar"))) == 1
    del split
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_killed_process_leaves_whole_copies_that_are_found_again(tmp_path: Path) -> None:
    put(tmp_path / "raw", {f"{n}.tar.gz": gzip.compress(os.urandom(1 << 20), 1) for n in range(8)})
    scratch = tmp_path / "scratch"
    code = (
        "import sys, pathlib\nfrom hjepa_shards.sources.formats.tar_archives import look_at, make_copies\n"
        f"make_copies(look_at(sorted(map(str, pathlib.Path({str(tmp_path / 'raw')!r}).iterdir()))), "
        f"pathlib.Path({str(scratch)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 30
        while len(list(scratch.glob("*.tar"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in scratch.glob("*.tar")}
    found = look_at(sorted(map(str, (tmp_path / "raw").iterdir())))
    make_copies(found, scratch)
    assert len(list(scratch.glob("*.tar"))) == 8
    assert list(scratch.glob(".*.tmp")) == []
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for archive in found:
        assert plain_tar(archive, scratch).read_bytes() == gzip.decompress(Path(archive.location).read_bytes())
