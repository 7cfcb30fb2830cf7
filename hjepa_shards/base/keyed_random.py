"""Random numbers from keys, never from a generator whose state other code may have moved.

Every draw of the system names its purpose: `derive_key(seed, "window", entry, generation, pass, lane,
window)`. The same parts give the same 128-bit key on every machine, and Philox turns a key into any number
of words. Parts are typed (1 is not "1") and prefixed by their length ("ab", "c" is not "a", "bc"), so two
purposes never share a key.

Raw words and a stable sort are all that is used: numpy promises the stream of Philox forever, and promises
nothing of that kind for `Generator.permutation`.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive_key(seed: int, *parts: int | str) -> int:
    """A 128-bit key. Parts are ints and strings; anything else (bool, numpy ints) is a TypeError."""
    bodies = [_body(part) for part in (seed, *parts)]
    framed = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    return int.from_bytes(hashlib.blake2b(framed, digest_size=16).digest(), "little")


def philox_words(key: int, count: int, counter: int = 0, stream: int = 0) -> NDArray[np.uint64]:
    """uint64[count] of Philox 4x64-10. Streams of one key are 2^64 counters (2^66 words) apart."""
    return np.random.Philox(key=key, counter=counter + (stream << 64)).random_raw(count)


def permutation(key: int, n: int) -> NDArray[np.int64]:
    """int64[n]: the numbers 0..n-1 in an order that depends on the key alone."""
    return np.argsort(philox_words(key, n), kind="stable")


def _body(part: int | str) -> bytes:
    if type(part) is int:
        return b"%d" % part
    if type(part) is str:
        return b"'" + part.encode() + b"'"
    raise TypeError(f"a key is made of int and str, {type(part).__name__} found: {part!r}")
