"""How bad a connection may be: what is tried again, how often and after how long; for downloads and remote reads alike.

What an answer or an error says decides. A server that is busy (5xx, 429) is tried a dozen times: 30% of such answers
end one request in two million. One that never answers is given up sooner. What no further try would change (403, 404,
no credentials, a certificate that cannot be trusted) is not tried again.
"""

import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

TRY_AGAIN_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers after which the next one may be another."""
_HOPELESS = frozenset(
    {
        "ClientConnectorCertificateError",  # aiohttp
        "DefaultCredentialsError",  # google-auth
        "NoAuthHandlerFound",
        "NoCredentialsError",  # botocore, as those below
        "ParamValidationError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "error_perm",  # ftplib
    }
)
"""Errors, by the names of their types: the libraries that raise them need not be installed."""
_ENDED_EARLY = ("SSLEOFError", "SSLZeroReturnError")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a bad connection is tolerated."""

    tries: int = 12
    """In a row that bring nothing new."""
    tries_without_answer: int = 5
    """Where nothing answered: more often a wrong address than a bad connection."""
    first_wait_s: float = 0.5
    """After the first failure; doubled after each further one, times a random number in [0.5, 1]."""
    most_wait_s: float = 30.0
    """The longest of these pauses, and the longest that a server may ask for."""
    timeout_s: float = 60.0
    """Without a byte for so long, a connection counts as dead."""
    least_bytes_per_s: float = 500.0
    """Slower than this over `timeout_s`, too."""

    def is_over(self, failures: int, *, answered: bool) -> bool:
        """Whether so many failures in a row are enough.  answered: whether anything ever answered."""
        return failures >= (self.tries if answered else min(self.tries_without_answer, self.tries))

    def pause_s(self, failures: int) -> float:
        """Before the next try, after so many failures in a row."""
        # unkeyed on purpose: machines that failed together must not come back together
        return min(self.first_wait_s * 2 ** max(failures - 1, 0), self.most_wait_s) * random.uniform(0.5, 1)


class TooSlowError(Exception):
    """Bytes come, but so few that the end is not in sight."""


@final
class Pace:
    """Watches how fast bytes come while they are waited for."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._waited_s, self._num_bytes = 0.0, 0

    def read(self, read: Callable[[int], bytes], at_most: int) -> bytes:
        """What `read` gives. TooSlowError where, over the last `timeout_s`, fewer bytes came than are tolerated."""
        patience, began = self._patience, time.monotonic()
        data = read(at_most)
        self._waited_s += time.monotonic() - began
        self._num_bytes += len(data)
        if data and self._waited_s >= patience.timeout_s:
            least = patience.least_bytes_per_s
            if self._num_bytes < least * self._waited_s:
                raise TooSlowError(
                    f"{self._num_bytes:,} bytes in {self._waited_s:.0f} s, slower than {least:,.0f} bytes/s"
                )
            self._waited_s, self._num_bytes = 0.0, 0
        return data


def is_web_page(first: bytes) -> bool:
    """Whether a file begins as HTML does: a login page, or a list of a folder, with 200 as if it were the file.

    first: its first bytes, some hundred.
    """
    return first[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of some library, or in one that caused it."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        meta = answer.get("ResponseMetadata") if isinstance(answer, dict) else None
        if isinstance(meta, dict):  # botocore
            return meta.get("HTTPStatusCode")
        parser = type(one).__module__ == "aiohttp.http_exceptions"  # its codes are no answers: a body that ended early
        for holder in () if parser else (one, answer):
            for name in ("status", "status_code", "code"):  # aiohttp; requests, azure; urllib, gcsfs
                status = getattr(holder, name, None)
                if isinstance(status, int) and 100 <= status < 600:
                    return status
    return None


def is_hopeless(error: BaseException) -> bool:
    """Whether the next try would end as this one did."""
    status = status_of(error)
    if status is not None:
        return status not in TRY_AGAIN_STATUS and status >= 400
    chain = list(_chain(error))
    if any(isinstance(one, PermissionError) or type(one).__name__ in _HOPELESS for one in chain):
        return True
    if any(isinstance(one, ssl.SSLError) and type(one).__name__ not in _ENDED_EARLY for one in chain):
        return True
    return isinstance(error, FileNotFoundError) and len(chain) == 1


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        yield one
        one = one.__cause__ or getattr(one, "reason", None) or getattr(one, "os_error", None)
        one = one if isinstance(one, BaseException) else None
