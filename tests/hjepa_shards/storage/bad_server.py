"""A real HTTP server that fails as it is set to: one `Answer` a request, in order; after the last it is flawless."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request is answered; as requested, but for what is said here."""

    status: int | None = None
    """With an empty body."""
    headers: dict[str, str] = field(default_factory=dict)
    """More of them, or others."""
    body: bytes | None = None
    """Other bytes than the file's."""
    ends_after: int | None = None
    """Bytes of the body, then the connection is closed."""
    resets: bool = False
    """It is closed with a reset."""
    stalls: bool = False
    """It stays open instead, silently."""
    ignores_range: bool = False
    ignores_if_range: bool = False
    mistakes_range: bool = False
    """Another part comes than was requested."""
    chunked: bool = False
    """Without Content-Length."""
    pause_s: float = 0.0
    """After each 16 kB."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # of the default 5 connections at once the others knock again after a second

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.files: dict[str, bytes] = {}
        """By path, without the slash before it."""
        self.etag: str | None = '"1"'
        self.ranges = "bytes"
        """What HEAD says about ranges."""
        self.script: list[Answer] = []
        self.otherwise = Answer()
        self.requests: list[tuple[str, str | None, str | None]] = []
        """(path, Range, If-Range) of each."""
        self.over = threading.Event()
        self.busy: list[str] = []
        self.side_by_side = 0
        """The most requests for indexes that were under way at once."""

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client to acknowledge the headers
    server: Server

    def do_GET(self) -> None:
        span, condition = self.headers["Range"], self.headers["If-Range"]
        self.server.requests.append((self.path, span, condition))
        answer = self.server.script.pop(0) if self.server.script else self.server.otherwise
        if self.path.endswith(".index"):
            self.server.busy.append(self.path)
            self.server.side_by_side = max(self.server.side_by_side, len(self.server.busy))
            self.server.over.wait(answer.pause_s)
            self.server.busy.remove(self.path)
        self.close_connection = True
        path = self.path.removeprefix("/")
        data = self.server.files.get(path, self.server.files.get(path.rpartition("/")[2]))
        if answer.body is not None:
            data = answer.body
        if answer.status is not None or data is None:
            self._head(answer, answer.status or 404, {"Content-Length": "0"})
            return
        headers = {"ETag": self.server.etag} if self.server.etag else {}
        status, first, whole = 200, 0, len(data)
        applies = answer.ignores_if_range or condition in (None, self.server.etag)
        if span and not answer.ignores_range and applies:
            begin, last = re.fullmatch(r"bytes=(\d+)-(\d*)", span).groups()  # type: ignore[union-attr]
            status, first, end = 206, int(begin), int(last or whole - 1) + 1
            first //= 1 + answer.mistakes_range
            if first >= whole:
                self._head(answer, 416, {"Content-Range": f"bytes */{whole}", "Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {first}-{min(end, whole) - 1}/{whole}"
            data = data[first:end]
        headers |= {"Transfer-Encoding": "chunked"} if answer.chunked else {"Content-Length": str(len(data))}
        self._head(answer, status, headers)
        self._body(answer, data)

    def do_HEAD(self) -> None:
        """What is there, and how large; not in the script, and never wrong."""
        path = self.path.removeprefix("/")
        data = self.server.files.get(path, self.server.files.get(path.rpartition("/")[2]))
        self.close_connection = True
        length = 0 if data is None else len(data)
        self._head(
            Answer(), 404 if data is None else 200, {"Content-Length": str(length), "Accept-Ranges": self.server.ranges}
        )

    def _head(self, answer: Answer, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _body(self, answer: Answer, data: bytes) -> None:
        sent = data[: answer.ends_after]
        for start in range(0, len(sent), 16_384):
            piece = sent[start : start + 16_384]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
            if answer.pause_s:
                self.server.over.wait(answer.pause_s)
        if answer.chunked and answer.ends_after is None:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if answer.stalls:
            self.server.over.wait(30)
        if answer.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
