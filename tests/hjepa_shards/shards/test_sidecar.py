"""The sidecar, byte for byte as docs/format.md says, by a struct written here; every flipped bit is found."""

import struct
import zlib
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import SidecarError
from hjepa_shards.shards.sidecar import ROW, Sidecar, digest_of_keys, key_hash, pack

# image_offset, text_offset, json_offset, key_hash; image, text, json (bytes, crc32); width, height; label; codec,
# colour, orientation, flags; reserved
ROWS = [
    (512, 2048, 4096, 2**63 + 5, 1000, 0xDEADBEEF, 7, 8, 9, 10, 640, 480, 3, 1, 2, 6, 0, 0),
    (6000, 0, 0, 77, 2**31, 2**32 - 1, 0, 0, 0, 0, 65500, 1, -1, 2, 1, 1, 0, 0),
]


def by_hand(rows: list[tuple[int, ...]], flags: int, tar_bytes: int, digest: bytes) -> bytes:
    head = b"HJSI" + struct.pack("<HHIQQ", 1, 80, flags, len(rows), tar_bytes) + digest
    head += struct.pack("<I", zlib.crc32(head)) + bytes(16)
    assert len(head) == 64
    body = b""
    for row in rows:
        packed = struct.pack("<QQQQIIIIIIIIiBBBBI", *row)
        assert len(packed) == 76
        body += packed + struct.pack("<I", zlib.crc32(packed))
    return head + body


def packed(rows: list[tuple[int, ...]] = ROWS) -> bytes:
    filled = np.array([(*row, 0) for row in rows], dtype=ROW)
    return pack(filled, flags=5, tar_bytes=123456789012, keys_digest=bytes(range(16)))


def test_the_layout_is_the_one_written_by_hand() -> None:
    assert packed() == by_hand(ROWS, 5, 123456789012, bytes(range(16)))


def test_what_was_packed_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    path.write_bytes(packed())
    sidecar = Sidecar(path)
    assert len(sidecar) == 2
    assert (sidecar.flags, sidecar.tar_bytes, sidecar.keys_digest) == (5, 123456789012, bytes(range(16)))
    assert [sidecar.row(i)[:-1] for i in range(2)] == ROWS
    assert len(sidecar.checked_rows()) == 2


def test_a_shard_without_samples_has_a_sidecar_of_64_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    path.write_bytes(packed([]))
    assert path.stat().st_size == 64
    assert len(Sidecar(path).checked_rows()) == 0


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    data = packed(ROWS[:1])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(SidecarError, match=r"x\.index"):
            Sidecar(path).checked_rows()


@pytest.mark.parametrize("length", [0, 10, 63, 64, 100, 223])
def test_a_sidecar_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.index"
    path.write_bytes(packed()[:length])
    with pytest.raises(SidecarError, match=r"x\.index"):
        Sidecar(path)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["image", "text", "json"])
def test_a_row_that_leads_out_of_its_shard_is_refused(tmp_path: Path, place: int) -> None:
    """Its checksum is right: a third party wrote it."""
    row = list(ROWS[0])
    row[place] = 123456789012 - row[4 + 2 * place] + 1
    path = tmp_path / "x.index"
    path.write_bytes(packed([tuple(row)]))
    with pytest.raises(SidecarError, match="members within the 123,456,789,012 bytes of the shard expected"):
        Sidecar(path).row(0)


def test_an_unknown_version_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    head = b"HJSI" + struct.pack("<HHIQQ", 9, 80, 0, 0, 0) + bytes(16)
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + bytes(16))
    with pytest.raises(SidecarError, match=r"version 1 .*version 9"):
        Sidecar(path)


def test_key_hash_and_keys_digest_are_blake2b() -> None:
    assert key_hash("a%2Fb") == int.from_bytes(blake2b(b"a%2Fb", digest_size=8).digest(), "little")
    assert digest_of_keys(["ab", "c"]) == blake2b(b"\2\0\0\0ab\1\0\0\0c", digest_size=16).digest()
    assert digest_of_keys(["ab", "c"]) != digest_of_keys(["a", "bc"])
