"""Files at URLs: busy, slow, lying and hopeless servers, and every library's own errors as one line."""

import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.storage import remote_files, retry
from hjepa_shards.storage.remote_files import (
    remote_bytes,
    remote_exists,
    remote_info,
    remote_range,
    remote_sends_parts,
)
from hjepa_shards.storage.retry import Patience
from tests.hjepa_shards.storage import bad_server
from tests.hjepa_shards.storage.bad_server import Answer, Server, serving

DATA = bytes(range(256)) * 400


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_files, "PATIENCE", Patience(first_wait_s=0.001, timeout_s=0.5))
    with serving() as server:
        server.files["x"] = DATA
        yield server


def test_a_busy_server_is_ridden_out_and_a_dead_one_is_not(server: Server) -> None:
    server.script = [Answer(status=503)] * 11
    assert remote_range(server.url("x"), 10, 20) == DATA[10:20]
    server.script = [Answer(status=500)] * 11
    assert b"".join(remote_bytes(server.url("x"), len(DATA))) == DATA
    server.requests.clear()
    server.script = [Answer(status=503)] * 99
    with pytest.raises(InputError, match="answer 503"):
        remote_range(server.url("x"), 10, 20)
    assert len(server.requests) == 12


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_no_further_try_would_change_is_requested_once(server: Server, status: int) -> None:
    server.otherwise = Answer(status=status)
    said = f"answer {status}" if status != 404 else "FileNotFoundError"
    with pytest.raises(InputError, match=said):
        remote_range(server.url("x"), 0, 9)
    with pytest.raises(InputError, match=said):
        list(remote_bytes(server.url("x"), 9))
    assert len(server.requests) == 2


def test_a_byte_now_and_then_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(tries_without_answer=2, first_wait_s=0.001, timeout_s=0.2, least_bytes_per_s=1e6)
    monkeypatch.setattr(remote_files, "PATIENCE", patience)
    server.otherwise = Answer(pause_s=0.15)  # 16 kB each time
    began = time.monotonic()
    with pytest.raises(InputError, match="slower than 1,000,000 bytes/s"):
        list(remote_bytes(server.url("x"), len(DATA)))
    server.otherwise = Answer(stalls=True, ends_after=5)
    monkeypatch.setattr(remote_files, "_longest_s", lambda num_bytes: 0.2)
    with pytest.raises(InputError, match="cannot be fetched"):
        remote_range(server.url("x"), 0, 99)
    assert time.monotonic() - began < 8


def test_a_web_page_in_place_of_a_file_is_called_that(server: Server) -> None:
    server.files["x"] = b"\n <!DOCTYPE html><html>please log in</html>"
    with pytest.raises(InputError, match="a web page found"):
        list(remote_bytes(server.url("x"), remote_info(server.url("x"))[0]))


def test_whether_a_server_sends_parts(server: Server) -> None:
    assert remote_sends_parts(server.url("x"))
    server.ranges = "none"
    assert remote_sends_parts(server.url("x"))
    server.otherwise = Answer(ignores_range=True)
    assert not remote_sends_parts(server.url("x"))


def test_a_host_of_ipv6_is_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    monkeypatch.setattr(bad_server.Server, "address_family", socket.AF_INET6)
    monkeypatch.setattr(bad_server, "HOST", "::1")
    with serving() as server:
        server.files["a/x"] = DATA
        url = f"http://[::1]:{server.server_address[1]}/a/x"
        assert remote_range(url, 5, 9) == DATA[5:9]
        assert b"".join(remote_bytes(url, len(DATA))) == DATA
        assert remote_exists(url)
        assert not remote_exists(url + "y")


@pytest.mark.parametrize(
    "url",
    ["memory://no/such", "nonsense://x/y", "http://", "http://[::1", "ftp://127.0.0.1:1/x", "file:///no/such/file"],
)
def test_an_address_of_any_kind_that_leads_nowhere_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "PATIENCE", Patience(tries_without_answer=2, first_wait_s=0.001))
    with pytest.raises(InputError) as caught:
        list(remote_bytes(url, remote_info(url)[0]))
    assert "\n" not in str(caught.value)


class NoCredentialsError(Exception):
    """As botocore calls its own."""


class Answered(Exception):
    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoCredentialsError("Unable to locate credentials"), True),
        (caused_by(OSError("x"), NoCredentialsError()), True),
        (ssl.SSLCertVerificationError("self-signed"), True),
        (ssl.SSLError("WRONG_VERSION_NUMBER"), True),
        (ssl.SSLEOFError("EOF"), False),
        (FileNotFoundError("gone"), True),
        (caused_by(FileNotFoundError("bucket"), Answered(404)), True),
        (caused_by(FileNotFoundError("url"), ConnectionResetError()), False),
        (caused_by(OSError("slow down"), Answered(503)), False),
        (PermissionError("denied"), True),
        (TimeoutError(), False),
        (ConnectionRefusedError(), False),
        (EOFError(), False),
    ],
)
def test_hopeless_is_what_the_next_try_would_not_change(error: Exception, expected: bool) -> None:
    assert retry.is_hopeless(error) is expected


def test_pauses_grow_to_a_limit_and_are_not_the_same_for_all() -> None:
    patience = Patience(first_wait_s=1, most_wait_s=8)
    for failures, most in ((1, 1), (2, 2), (4, 8), (99, 8)):
        pauses = {patience.pause_s(failures) for _ in range(20)}
        assert len(pauses) > 1
        assert all(most / 2 <= pause <= most for pause in pauses)
