"""One file over HTTP on a connection that breaks: what has arrived stays in <file>.part, the next try fetches the rest.

<file>.part.json keeps the ETag (or date) of what is arriving. It goes back as If-Range, so a file that changed at the
server comes again instead of being glued together from two. A file gets its name when its size and sha256 are right,
and not before. urllib does the HTTP: it verifies certificates, follows redirects and respects the proxy variables; what
this module adds (continuing, patience, refusing a login page in place of an archive) no client library brings along.
"""

import email.utils
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from hjepa_shards.base.atomic_files import sync_folder, write_atomically, writing
from hjepa_shards.base.regular_files import regular_descriptor
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.storage.retry import TRY_AGAIN_STATUS, Pace, Patience, TooSlowError, is_hopeless, is_web_page

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_CHUNK_BYTES = 2**18
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_MORE = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
"""How a part is opened: others may write to its folder, and a link there would be followed to a file of the user's."""
_ELSEWHERE = "take it from another address with --url-base"


PATIENT = Patience(tries=12, tries_without_answer=4, first_wait_s=1.0, most_wait_s=300.0)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Watcher:
    """Receives how far a long piece of work is."""

    bar: Callable[[str], Progress]
    """A piece of work of this name begins; what it returns receives the progress."""
    note: Callable[[str], None]
    """A line for the user: what went wrong, and when it is tried again."""


SILENT = Watcher(bar=lambda what: lambda done, total: None, note=lambda line: None)


def fetch(
    url: str,
    path: Path,
    *,
    num_bytes: int | None,
    sha256: str,
    patience: Patience = PATIENT,
    watcher: Watcher = SILENT,
) -> None:
    """`path`, whole and right. Continues from what an earlier call left.

    num_bytes: as published; None where it is not: then the server's word counts, and the checksum.
    InputError where the server does not give the file, ShardError where it gives another one.
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError(f"{url}: an address that begins with http:// or https:// expected")
    found = ""
    for left in (1, 0):
        transfer = _Transfer(url, _Part(path, url), num_bytes, patience, watcher)
        transfer.run()
        found = digest_of(transfer.part.path, "sha256", watcher.bar(f"check {path.name}"))
        if found != sha256 and _is_web_page(transfer.part.path):
            transfer.part.remove()
            raise InputError(f"{url}: an archive expected, a web page found (a login?); {_ELSEWHERE}")
        if found == sha256:
            transfer.part.finish(path)
            return
        transfer.part.remove()
        if left:
            watcher.note(f"{path.name}: sha256 {sha256} expected, {found} found; once more, from the beginning")
    raise ShardError(
        f"{url}: sha256 {sha256} expected, {found} found, twice: not the published file; it was removed, {_ELSEWHERE}"
    )


def digest_of(path: Path, algorithm: str, progress: Progress | None = None) -> str:
    """Hex digest of a file. InputError where it cannot be read."""
    digest = hashlib.new(algorithm)
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while data := file.read(2**20):
                digest.update(data)
                done += len(data)
                if progress:
                    progress(done, total)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _is_web_page(path: Path) -> bool:
    """Whether a file begins as HTML does."""
    with path.open("rb") as file:
        return is_web_page(file.read(1000))


class _Interrupted(Exception):
    """This try failed, the next one may not."""

    def __init__(self, what: str, *, wait_s: float | None = None, slow: bool = False) -> None:
        super().__init__(what)
        self.wait_s = wait_s
        """As the server asks."""
        self.slow = slow
        """Bytes came, but so few that they do not count."""


@final
class _Part:
    """What has arrived of a file, and of which version of it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._url = url
        self._memory = path.with_name(f"{path.name}.part.json")
        memory = self._remembered()
        self.total: int | None = memory.get("total")
        # another server's ETag means nothing here; the checksum shows whether the two have the same file
        self.validator: str | None = memory.get("validator") if memory.get("url") == url else None

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, validator: str | None, total: int | None) -> None:
        """Empty, for another version or for all of it again."""
        self.validator, self.total = validator, total
        with writing(self.path):
            self.path.unlink(missing_ok=True)
            os.close(regular_descriptor(self.path, _NEW))
        memory = {"url": self._url, "validator": validator, "total": total}
        write_atomically(self._memory, json.dumps(memory).encode())

    def remove(self) -> None:
        self.validator = self.total = None
        self.path.unlink(missing_ok=True)
        self._memory.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        with writing(path):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.rename(path)
            sync_folder(path.parent)
        self._memory.unlink(missing_ok=True)

    def _remembered(self) -> dict[str, Any]:
        try:
            memory = json.loads(self._memory.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return memory if isinstance(memory, dict) else {}


@final
class _Transfer:
    """The requests that bring one file."""

    def __init__(self, url: str, part: _Part, num_bytes: int | None, patience: Patience, watcher: Watcher) -> None:
        self.url = url
        self.part = part
        self.num_bytes = num_bytes
        self.patience = patience
        self.watcher = watcher
        self.name = part.path.stem
        self._opener = urllib.request.build_opener()
        self._answered = False

    def run(self) -> None:
        """Ask until everything is here."""
        progress = self.watcher.bar(f"fetch {self.name}")
        failures, farthest = 0, self.part.num_bytes
        while not self._is_complete():
            try:
                self._ask(progress)
                return
            except _Interrupted as error:
                news = self.part.num_bytes - farthest
                failures = failures + 1 if error.slow or news <= 0 else 0
                farthest = max(farthest, self.part.num_bytes)
                self._wait(error, failures)

    def _is_complete(self) -> bool:
        expected = self.part.total if self.num_bytes is None else self.num_bytes
        if expected is not None and self.part.num_bytes > expected:
            self.part.remove()
        return self.part.num_bytes == expected

    def _wait(self, error: _Interrupted, failures: int) -> None:
        """Until the next try is due. InputError where there is none."""
        patience = self.patience
        arrived = self.part.num_bytes
        kept = f"the same command continues {f'from byte {arrived:,}' if arrived else 'where this one ended'}"
        if patience.is_over(failures, answered=self._answered):
            raise InputError(f"{self.url}: given up after {failures} tries that brought nothing: {error}; {kept}")
        if error.wait_s is not None and error.wait_s > patience.most_wait_s:
            raise InputError(f"{self.url}: {error}, come again in {error.wait_s:,.0f} s; {kept}")
        wait_s = patience.pause_s(failures) if error.wait_s is None else error.wait_s
        self.watcher.note(f"{self.name}: {error} at byte {arrived:,}; again in {wait_s:.1f} s")
        time.sleep(wait_s)

    def _ask(self, progress: Progress) -> None:
        """One request, for what is missing. Returns when all of it is here."""
        headers = {"User-Agent": "hjepa-shards", "Accept-Encoding": "identity"}
        if self.part.num_bytes:
            headers["Range"] = f"bytes={self.part.num_bytes}-"
            if self.part.validator:
                headers["If-Range"] = self.part.validator
        request = urllib.request.Request(self.url, headers=headers)
        try:
            with self._opener.open(request, timeout=self.patience.timeout_s) as response:
                self._answered = True
                self._take(response, progress)
        except HTTPError as error:
            self._answered = True
            with error:
                self._judge(error)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(
                    f"{self.url}: its certificate cannot be trusted: {reason.verify_message}; see to this machine's "
                    f"clock and certificates (SSL_CERT_FILE), or {_ELSEWHERE}"
                ) from error
            if is_hopeless(error):
                raise InputError(f"{self.url}: cannot be fetched: {_one_line(reason)}; {_ELSEWHERE}") from error
            if isinstance(reason, TimeoutError):
                raise _Interrupted(f"nothing came for {self.patience.timeout_s:g} s") from error
            raise _Interrupted(_one_line(getattr(reason, "strerror", None) or reason)) from error

    def _take(self, response: http.client.HTTPResponse, progress: Progress) -> None:
        """Body -> .part: after what is there if the server continues from it, else from the beginning."""
        headers = response.headers
        if response.status not in (200, 206):
            raise InputError(f"{self.url}: the file expected, answer {response.status} found; {_ELSEWHERE}")
        if headers.get_content_type() == "text/html":
            raise InputError(
                f"{self.url}: an archive expected, a web page found at {response.geturl()} (a login?); {_ELSEWHERE}"
            )
        etag = headers["ETag"]
        validator = etag if etag and not etag.startswith("W/") else headers["Last-Modified"]
        if response.status == 206:
            start, total = _range_of(headers["Content-Range"])
            changed = validator is not None and self.part.validator not in (None, validator)
            if start != self.part.num_bytes or changed or (self.part.total is not None and total != self.part.total):
                self.part.remove()
                raise _Interrupted("another file is there now, from the beginning")
        else:
            total = _number(headers["Content-Length"])
        if self.num_bytes is not None and total not in (None, self.num_bytes):
            raise InputError(
                f"{self.url}: {self.num_bytes:,} bytes expected, as published, {total:,} offered; {_ELSEWHERE}"
            )
        if response.status == 200:
            if self.part.num_bytes:
                self.watcher.note(
                    f"{self.name}: the server sends all of it again: another file, or it cannot send a part"
                )
            self.part.begin(validator, total)
        self._append(response, self.num_bytes if total is None else total, progress)

    def _append(self, response: http.client.HTTPResponse, expected: int | None, progress: Progress) -> None:
        done = self.part.num_bytes
        with writing(self.part.path):
            file = os.fdopen(regular_descriptor(self.part.path, _MORE), "ab")
        pace = Pace(self.patience)
        with file:
            while data := _within(pace, response):
                done += len(data)
                if expected is not None and done > expected:
                    raise InputError(f"{self.url}: {expected:,} bytes expected, more found; {_ELSEWHERE}")
                with writing(self.part.path):
                    file.write(data)
                    file.flush()
                progress(done, expected or done)
        if expected is not None and done < expected:
            raise _Interrupted("the connection ended")

    def _judge(self, error: HTTPError) -> None:
        """An answer that brings no file: returns where it says that all is here already."""
        what = _one_line(f"answer {error.code} {error.reason}")
        if error.code == 416:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers["Content-Range"] or "")
            if total and int(total[1]) == self.part.num_bytes:
                return
            self.part.remove()
            raise _Interrupted("another file is there now, from the beginning") from error
        if error.code not in TRY_AGAIN_STATUS:
            raise InputError(f"{self.url}: the file expected, {what} found; {_ELSEWHERE}") from error
        raise _Interrupted(what, wait_s=_requested_wait_s(error.headers["Retry-After"])) from error


def _within(pace: Pace, response: http.client.HTTPResponse) -> bytes:
    try:
        return pace.read(response.read1, _CHUNK_BYTES)
    except TooSlowError as error:
        raise _Interrupted(str(error), slow=True) from error


def _requested_wait_s(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    seconds = _number(retry_after)
    if retry_after is None or seconds is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _range_of(content_range: str | None) -> tuple[int | None, int | None]:
    """(start, total) of a Content-Range header; None for what it does not say."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range or "")
    return (int(found[1]), _number(found[2])) if found else (None, None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None


def _one_line(what: object) -> str:
    return " ".join(str(what).split()) or type(what).__name__
