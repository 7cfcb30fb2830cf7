"""One file over HTTP, from a real server that breaks off, lies, stalls and changes its mind."""

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.storage.http_download import Patience, Watcher, fetch
from tests.hjepa_shards.storage.bad_server import Answer, Server, serving

DATA = np.random.Generator(np.random.Philox(3)).bytes(300_000)
NAME = "archive.tar"
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = Patience(tries=4, first_wait_s=0.01, most_wait_s=1.5, timeout_s=3)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files[NAME] = DATA
        yield server


def get(
    server: Server,
    folder: Path,
    *,
    num_bytes: int | None = len(DATA),
    data: bytes = DATA,
    notes: list[str] | None = None,
) -> Path:
    path = folder / NAME
    fetch(
        server.url(NAME),
        path,
        num_bytes=num_bytes,
        sha256=SHA256,
        patience=QUICK,
        watcher=Watcher(bar=lambda what: lambda done, total: None, note=(notes if notes is not None else []).append),
    )
    return path


def starts(server: Server) -> list[int]:
    """Where each request wanted to continue."""
    return [int(span[6:-1]) if span else 0 for _, span, _ in server.requests]


def alone(folder: Path, data: bytes = DATA) -> bool:
    """Whether the file is there, whole, and nothing else."""
    return [path.name for path in folder.iterdir()] == [NAME] and (folder / NAME).read_bytes() == data


def test_a_file_arrives_in_one_request(server: Server, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def bar(what: str) -> object:
        return lambda done, total: seen.setdefault(what, []).append((done, total))

    fetch(
        server.url(NAME),
        tmp_path / NAME,
        num_bytes=None,
        sha256=SHA256,
        watcher=Watcher(bar=bar, note=lambda line: pytest.fail(line)),  # type: ignore[arg-type]
    )
    assert alone(tmp_path)
    assert len(server.requests) == 1
    assert [steps[-1] for steps in seen.values()] == [(len(DATA), len(DATA))] * 2
    assert list(seen) == [f"fetch {NAME}", f"check {NAME}"]


def test_after_each_break_only_the_rest_is_requested(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(ends_after=n) for n in (100_000, 50_000, 1, 70_000)]
    server.script.insert(2, Answer(ends_after=20_000, resets=True))
    notes: list[str] = []
    get(server, tmp_path, notes=notes)
    assert alone(tmp_path)
    wanted = starts(server)
    assert wanted[:3] == [0, 100_000, 150_000]
    assert wanted == sorted(wanted)
    assert len(wanted) == 6
    assert {condition for _, _, condition in server.requests[1:]} == {'"1"'}
    assert "at byte 100,000; again in 0.0 s" in notes[0]


def test_progress_renews_patience_and_standstill_ends_it(server: Server, tmp_path: Path) -> None:
    """Ten breaks with a byte each are tolerated by a patience of four tries; four without one are not."""
    server.script = [Answer(ends_after=1) for _ in range(10)]
    get(server, tmp_path)
    assert alone(tmp_path)
    (tmp_path / NAME).unlink()
    server.requests.clear()
    server.script = [Answer(ends_after=1000)]
    server.otherwise = Answer(ends_after=0)
    with pytest.raises(InputError, match=r"given up after 4 tries.*continues from byte 1,000"):
        get(server, tmp_path)
    assert len(server.requests) == 5
    server.otherwise = Answer()
    get(server, tmp_path)
    assert alone(tmp_path)


def test_500_and_503_are_tried_again_and_the_wait_that_they_request_is_kept(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(status=500), Answer(status=503, headers={"Retry-After": "1"}), Answer(status=429)]
    notes: list[str] = []
    began = time.monotonic()
    get(server, tmp_path, notes=notes)
    assert time.monotonic() - began >= 1
    assert alone(tmp_path)
    assert [note.partition(" at ")[0].removeprefix(f"{NAME}: answer ")[:3] for note in notes] == ["500", "503", "429"]


def test_a_wait_longer_than_patience_is_told_to_the_user(server: Server, tmp_path: Path) -> None:
    for later in ("3600", formatdate(time.time() + 3600, usegmt=True)):
        server.script = [Answer(ends_after=1000), Answer(status=503, headers={"Retry-After": later})]
        with pytest.raises(InputError, match=r"answer 503 .*come again in 3,\d\d\d s; .* from byte 1,000"):
            get(server, tmp_path)
        (tmp_path / f"{NAME}.part").unlink()


def test_a_wait_that_is_none_is_not_heeded(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(status=503, headers={"Retry-After": value}) for value in ("soon", "²", "-1")]
    get(server, tmp_path)
    assert alone(tmp_path)


def test_wrong_bytes_are_fetched_once_more_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(body=bytes(len(DATA)))]
    get(server, tmp_path)
    assert alone(tmp_path)
    assert starts(server) == [0, 0]


def test_wrong_bytes_twice_are_an_error_with_both_digests_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    wrong = bytes(len(DATA))
    server.files[NAME] = wrong
    with pytest.raises(ShardError) as error:
        get(server, tmp_path)
    assert SHA256 in str(error.value)
    assert hashlib.sha256(wrong).hexdigest() in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 2


def test_a_server_that_ignores_ranges_sends_all_again_and_nothing_is_glued(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(ends_after=100_000), Answer(ignores_range=True, ends_after=40_000)]
    server.otherwise = Answer(ignores_range=True)
    get(server, tmp_path)
    assert alone(tmp_path)
    assert starts(server) == [0, 100_000, 40_000]


def test_a_server_that_ignores_ranges_and_always_breaks_off_is_given_up(server: Server, tmp_path: Path) -> None:
    server.otherwise = Answer(ignores_range=True, ends_after=100_000)
    with pytest.raises(InputError, match="given up after 4 tries"):
        get(server, tmp_path)


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_comes_again(server: Server, tmp_path: Path, ignores_if_range: bool) -> None:
    """Also from a server that respects Range and not If-Range: its ETag shows it."""
    server.script = [Answer(ends_after=100_000)]
    server.otherwise = Answer(ignores_if_range=ignores_if_range)
    changed = DATA[::-1]

    notes: list[str] = []

    def change(line: str) -> None:
        notes.append(line)
        server.files[NAME], server.etag = changed, '"2"'

    fetch(
        server.url(NAME),
        tmp_path / NAME,
        num_bytes=None,
        sha256=hashlib.sha256(changed).hexdigest(),
        patience=QUICK,
        watcher=Watcher(bar=lambda what: lambda done, total: None, note=change),
    )
    assert alone(tmp_path, changed)
    assert starts(server) == ([0, 100_000, 0] if ignores_if_range else [0, 100_000])
    assert not any("sha256" in note for note in notes)  # it was seen before the checksum saw it


def test_another_part_than_requested_is_not_glued_on(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(ends_after=100_000), Answer(mistakes_range=True)]
    notes: list[str] = []
    get(server, tmp_path, notes=notes)
    assert alone(tmp_path)
    assert starts(server) == [0, 100_000, 0]
    assert not any("sha256" in note for note in notes)


def test_dates_stand_in_for_etags(server: Server, tmp_path: Path) -> None:
    for etag in (None, 'W/"weak"'):
        server.etag = etag
        server.requests.clear()
        date = {"Last-Modified": "Sat, 21 Nov 2009 07:18:02 GMT"}
        server.script = [Answer(ends_after=9, headers=date), Answer(ignores_if_range=True, headers=date)]
        get(server, tmp_path).unlink()
        assert server.requests[1][1:] == ("bytes=9-", date["Last-Modified"])


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_plain_no_is_not_tried_again(server: Server, tmp_path: Path, status: int) -> None:
    server.otherwise = Answer(status=status)
    with pytest.raises(InputError, match=f"archive.tar: the file expected, answer {status} .*--url-base"):
        get(server, tmp_path)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_silence_counts_as_a_break(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(ends_after=1000, stalls=True), Answer(ends_after=0, stalls=True)]
    notes: list[str] = []
    get(server, tmp_path, notes=notes)
    assert alone(tmp_path)
    assert ["nothing came for 3 s at byte 1,000" in note for note in notes] == [True, True]


def test_redirects_are_followed_also_when_going_on(server: Server, tmp_path: Path) -> None:
    there = Answer(status=302, headers={"Location": "/elsewhere/archive.tar"})
    server.script = [there, Answer(ends_after=1000), there, Answer()]
    get(server, tmp_path)
    assert alone(tmp_path)
    assert server.requests[3] == ("/elsewhere/archive.tar", "bytes=1000-", '"1"')


def test_a_circle_of_redirects_is_one_line(server: Server, tmp_path: Path) -> None:
    server.otherwise = Answer(status=302, headers={"Location": f"/{NAME}"})
    with pytest.raises(InputError) as error:
        get(server, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_another_size_than_the_published_one_is_refused_before_anything_is_lost(
    server: Server, tmp_path: Path, lie: int
) -> None:
    server.script = [
        Answer(ends_after=1000),
        Answer(ignores_range=True, headers={"Content-Length": str(len(DATA) + lie)}),
    ]
    with pytest.raises(InputError, match=rf"300,000 bytes expected, as published, {len(DATA) + lie:,} offered"):
        get(server, tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == DATA[:1000]


def test_a_size_that_is_too_large_ends_with_what_there_is(server: Server, tmp_path: Path) -> None:
    """Where none was published: the next request learns that nothing follows, and the checksum decides."""
    server.otherwise = Answer(headers={"Content-Length": str(len(DATA) + 1000)})
    server.script = [server.otherwise]
    server.otherwise = Answer()
    get(server, tmp_path, num_bytes=None)
    assert alone(tmp_path)
    assert starts(server) == [0, len(DATA)]


def test_a_size_that_is_too_small_is_found_by_the_checksum(server: Server, tmp_path: Path) -> None:
    server.otherwise = Answer(headers={"Content-Length": "299000"})
    with pytest.raises(ShardError, match="sha256"):
        get(server, tmp_path, num_bytes=None)


def test_more_than_was_announced_is_not_written(server: Server, tmp_path: Path) -> None:
    server.otherwise = Answer(chunked=True, body=DATA + bytes(10_000_000))
    with pytest.raises(InputError, match="300,000 bytes expected, more found"):
        get(server, tmp_path)
    assert (tmp_path / f"{NAME}.part").stat().st_size <= len(DATA)


def test_a_file_without_a_size_arrives(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(chunked=True, ends_after=50_000), Answer(ends_after=9), Answer(chunked=True)]
    get(server, tmp_path)
    assert alone(tmp_path)
    (tmp_path / NAME).unlink()
    server.script = [Answer(chunked=True, ends_after=50_000), Answer(chunked=True)]
    get(server, tmp_path, num_bytes=None)
    assert alone(tmp_path)


def test_a_web_page_in_place_of_the_file_is_refused_and_what_had_arrived_stays(server: Server, tmp_path: Path) -> None:
    page = Answer(body=b"<html>log in, please</html>", ignores_range=True, headers={"Content-Type": "text/html"})
    server.script = [Answer(ends_after=1000), page]
    with pytest.raises(InputError, match=r"a web page found.*--url-base"):
        get(server, tmp_path, num_bytes=None)
    assert (tmp_path / f"{NAME}.part").read_bytes() == DATA[:1000]


def test_what_a_killed_run_left_is_used_without_a_request_where_it_is_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(DATA)
    get(server, tmp_path)
    assert alone(tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("left", [DATA, DATA[:-5], DATA + b"more", bytes(4000), b""])
@pytest.mark.parametrize("memory", [b"", b"[]", b"\x00{", b'{"url": 1, "total": 12, "validator": "x"}'])
def test_whatever_was_left_the_file_becomes_right(server: Server, tmp_path: Path, left: bytes, memory: bytes) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(left)
    (tmp_path / f"{NAME}.part.json").write_bytes(memory)
    notes: list[str] = []
    get(server, tmp_path, num_bytes=None, notes=notes)
    assert alone(tmp_path)
    assert left == bytes(4000) or not any("sha256" in note for note in notes)


def test_another_mirror_continues_where_the_first_ended(server: Server, tmp_path: Path) -> None:
    server.otherwise = Answer(ends_after=0)
    server.script = [Answer(ends_after=100_000)]
    with pytest.raises(InputError):
        get(server, tmp_path)
    with serving() as mirror:
        mirror.files[NAME], mirror.etag = DATA, '"its own"'
        get(mirror, tmp_path)
        assert mirror.requests == [(f"/{NAME}", "bytes=100000-", None)]
    assert alone(tmp_path)


def test_a_server_that_never_answers_is_given_up_sooner(tmp_path: Path) -> None:
    with serving() as server:
        url = server.url(NAME)
    patience = Patience(tries=50, first_wait_s=0.001)
    with pytest.raises(InputError, match=r"given up after 5 tries.*Connection refused.*where this one ended"):
        fetch(url, tmp_path / NAME, num_bytes=1, sha256="", patience=patience)


def test_an_unknown_host_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fetch("http://nowhere.invalid/x", tmp_path / NAME, num_bytes=1, sha256="", patience=QUICK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a.b/c", "data/x.tar", "http:///x", ""])
def test_only_http_is_spoken(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="http"):
        fetch(url, tmp_path / NAME, num_bytes=1, sha256="", patience=QUICK)


def test_proxy_variables_are_heeded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url())
    monkeypatch.delenv("no_proxy", raising=False)
    fetch(
        f"http://data.invalid/{NAME}",
        tmp_path / NAME,
        num_bytes=len(DATA),
        sha256=SHA256,
        patience=QUICK,
    )
    assert server.requests == [(f"http://data.invalid/{NAME}", None, None)]
    assert alone(tmp_path)


def test_certificates_are_verified(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    made = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    arguments = {"num_bytes": len(DATA), "sha256": SHA256, "patience": QUICK}
    url = server.url(NAME).replace("http:", "https:")
    with pytest.raises(InputError, match=r"certificate cannot be trusted: self.signed.*SSL_CERT_FILE"):
        fetch(url, tmp_path / NAME, **arguments)  # type: ignore[arg-type]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fetch(url, tmp_path / NAME, **arguments)  # type: ignore[arg-type]
    assert (tmp_path / NAME).read_bytes() == DATA


def test_a_full_disk_is_reported_with_the_numbers_and_continues_after_room_was_made(
    server: Server, small_disk: Path, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_900_000))
    with pytest.raises(InputError, match=r"archive.tar.part: cannot be written: No space left.*MiB free"):
        get(server, small_disk)
    ballast.unlink()
    server.requests.clear()
    get(server, small_disk)
    assert alone(small_disk)
    assert starts(server)[0] > 0


def test_kill_9_loses_nothing_that_had_arrived(server: Server, tmp_path: Path) -> None:
    server.otherwise = Answer(pause_s=0.05)
    code = (
        "import sys; from pathlib import Path; from hjepa_shards.storage.http_download import fetch\n"
        "fetch(sys.argv[1], Path(sys.argv[2]), num_bytes=int(sys.argv[3]), sha256=sys.argv[4])"
    )
    arguments = [server.url(NAME), str(tmp_path / NAME), str(len(DATA)), SHA256]
    part = tmp_path / f"{NAME}.part"
    farthest = 0
    for goal in (40_000, 150_000):
        with subprocess.Popen([sys.executable, "-c", code, *arguments]) as process:
            for _ in range(2000):
                farthest = part.stat().st_size if part.exists() else 0
                if farthest >= goal:
                    break
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        assert not (tmp_path / NAME).exists()
        assert json.loads((tmp_path / f"{NAME}.part.json").read_text())["validator"] == '"1"'
    server.otherwise = Answer()
    get(server, tmp_path)
    assert alone(tmp_path)
    wanted = starts(server)
    assert wanted[0] == 0
    assert wanted == sorted(wanted)
    assert wanted[-1] >= farthest >= 150_000
