import hashlib

import numpy as np
import pytest

from hjepa_shards.base.keyed_random import derive_key, permutation, philox_words


def test_words_are_those_of_the_published_philox() -> None:
    """Known answers of Random123 for philox4x64-10. numpy adds one to the counter before the first block."""
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox_words(0, 4, counter=2**256 - 1).tolist() == zeros
    assert philox_words(2**128 - 1, 4, counter=2**256 - 2).tolist() == ones


def test_words_continue_from_a_counter_and_streams_are_apart() -> None:
    words = philox_words(9, 40)
    assert words.dtype == np.uint64
    assert philox_words(9, 20, counter=5).tolist() == words[20:].tolist()
    assert philox_words(9, 4, counter=3, stream=2).tolist() == philox_words(9, 4, counter=3 + 2**65).tolist()


def test_a_key_is_a_digest_of_typed_parts_with_their_lengths() -> None:
    body = b"\x02\0\0\0-7" + b"\x06\0\0\0'mask'" + b"\x04\0\0\0'\xc3\xa9'" + b"\x0d\0\0\x001000000000000"
    expected = int.from_bytes(hashlib.blake2b(body, digest_size=16).digest(), "little")
    assert derive_key(-7, "mask", "é", 10**12) == expected


def test_other_types_and_other_borders_are_other_keys() -> None:
    parts = [(1,), ("1",), (1, 1), (11,), ("1", "1"), ("11",), ("a", "bc"), ("ab", "c"), ("ab", "", "c")]
    assert len({derive_key(0, *part) for part in parts}) == len(parts)


@pytest.mark.parametrize("part", [True, 1.0, None, b"a", np.int64(1)])
def test_a_part_of_any_other_type_is_refused(part: object) -> None:
    with pytest.raises(TypeError, match="int and str"):
        derive_key(0, part)  # pyright: ignore[reportArgumentType]


def test_a_permutation_sorts_its_words() -> None:
    words = philox_words(5, 1000).tolist()
    order = permutation(5, 1000).tolist()
    assert order == sorted(range(1000), key=lambda i: words[i])
    assert permutation(5, 0).tolist() == []
    assert permutation(5, 1).tolist() == [0]
