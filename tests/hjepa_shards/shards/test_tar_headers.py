"""Third-party tars, header by header: what `tarfile` finds and what it does not, and one line for hostile ones."""

import io
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa_shards.errors import ShardError
from hjepa_shards.shards.tar_headers import JOINED, NO_END_MARK, OTHER_BYTES, TarEntry, tar_entries
from tests.hjepa_shards.sources.layouts import tarred

BLOCK = 512


def member(name: str, data: bytes = b"", kind: bytes = b"0", link: str = "") -> bytes:
    """A header and its data, without an end mark."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def sealed(header: bytes) -> bytes:
    """The header with the checksum that its bytes have."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def with_size(header: bytes, size: bytes) -> bytes:
    return sealed(header[:124] + size + header[136:])


def pax(fields: bytes, kind: bytes = b"x") -> bytes:
    return member("pax", fields, kind)


def record(key: str, value: str) -> bytes:
    """`<length> <key>=<value>`, as pax writes it."""
    rest = f" {key}={value}\n"
    length = next(n for n in range(999) if len(f"{n}{rest}".encode()) == n)
    return f"{length}{rest}".encode()


def found(folder: Path, data: bytes) -> tuple[dict[str, bytes | str], list[tuple[str, int]]]:
    """Each member's bytes, or why it has none; and the remarks."""
    path = folder / "some.tar"
    path.write_bytes(data)
    remarks: list[tuple[str, int]] = []
    entries = list(tar_entries(path, remark=lambda kind, offset: remarks.append((kind, offset))))
    return {e.name: e.problem or data[e.offset : e.offset + e.num_bytes] for e in entries}, remarks


ONE, TWO = member("a.jpg", b"one"), member("b.jpg", b"two")
END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("data", "names", "remarks"),
    [
        (ONE + END, ["a.jpg"], []),
        (ONE + END + TWO + END, ["a.jpg", "b.jpg"], [(JOINED, 2048)]),
        (ONE + bytes(20 * BLOCK) + TWO + END + ONE + END, ["a.jpg", "b.jpg"], [(JOINED, 22 * BLOCK)]),
        (ONE + bytes(BLOCK) + TWO + END, ["a.jpg", "b.jpg"], [(JOINED, 1536)]),
        (ONE + END + b"a signature", ["a.jpg"], [(OTHER_BYTES, 2048)]),
        (ONE + END + bytes(2**21) + b"\1" * 600, ["a.jpg"], [(OTHER_BYTES, 2048 + 2**21)]),
        (ONE + TWO, ["a.jpg", "b.jpg"], [(NO_END_MARK, 2048)]),
        (ONE + END + TWO, ["a.jpg", "b.jpg"], [(JOINED, 2048), (NO_END_MARK, 3072)]),
    ],
)
def test_what_stands_after_an_end_mark_is_read_or_remarked(
    tmp_path: Path, data: bytes, names: list[str], remarks: list[tuple[str, int]]
) -> None:
    members, said = found(tmp_path, data)
    assert list(members) == names
    assert said == remarks


def test_a_tar_that_was_joined_to_others_must_be_whole_too(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"b\.jpg should end at byte 3,072"):
        found(tmp_path, ONE + END + TWO[:-200])


def test_a_hard_link_is_the_member_that_it_names(tmp_path: Path) -> None:
    data = b"".join(
        [
            member("./a.jpg", b"old"),
            member("first.jpg", kind=tarfile.LNKTYPE, link="a.jpg"),
            member("a.jpg", b"new"),
            member("second.jpg", kind=tarfile.LNKTYPE, link="./a.jpg"),
            member("third.jpg", kind=tarfile.LNKTYPE, link="second.jpg"),
            member("none.jpg", kind=tarfile.LNKTYPE, link="later.jpg"),
            member("later.jpg", b"later"),
        ]
    )
    members, _ = found(tmp_path, data + END)
    assert [members[f"{name}.jpg"] for name in ("first", "second", "third")] == [b"old", b"new", b"new"]
    assert members["none.jpg"] == "a hard link to later.jpg, which is not before it in the tar"


def gnu_sparse() -> bytes:
    """GNU's old kind, with one more block of its map."""
    header = bytearray(member("s.jpg", b"12345", b"S")[:BLOCK])
    header[482] = 1
    return sealed(bytes(header)) + bytes(BLOCK) + b"12345".ljust(BLOCK, b"\0")


def pax_sparse() -> bytes:
    fields = record("GNU.sparse.major", "1") + record("GNU.sparse.name", "some/s.jpg")
    return pax(fields) + member("GNUSparseFile.0/s.jpg", b"1\n0\n5\n".ljust(BLOCK, b"\0") + b"12345")


@pytest.mark.parametrize(
    ("data", "name", "problem"),
    [
        (gnu_sparse(), "s.jpg", "a sparse file"),
        (pax_sparse(), "some/s.jpg", "a sparse file"),
        (member("s.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"), "s.jpg", "a symbolic link"),
        (member("s.jpg", kind=tarfile.FIFOTYPE), "s.jpg", "a device or a pipe"),
        (member("s.jpg", b"xyz", b"M"), "s.jpg", "the unknown type b'M'"),
    ],
)
def test_what_is_no_plain_file_is_a_member_with_the_reason(
    tmp_path: Path, data: bytes, name: str, problem: str
) -> None:
    members, remarks = found(tmp_path, data + ONE + END)
    assert list(members) == [name, "a.jpg"]
    assert problem in str(members[name])
    assert (members["a.jpg"], remarks) == (b"one", [])


def test_names_that_are_not_utf8_are_shown_as_bytes(tmp_path: Path) -> None:
    latin = sealed(b"caf\xe9.jpg".ljust(100, b"\0") + ONE[100:BLOCK]) + ONE[BLOCK:]
    assert found(tmp_path, latin + END)[0] == {"caf\\xe9.jpg": b"one"}


HOSTILE = {
    "a size below zero": (with_size(TWO[:BLOCK], b"\xff" * 10 + b"\xfe\0"), "size b'"),
    "a huge size": (with_size(TWO[:BLOCK], b"\x80" + b"\xff" * 11), "size b'"),
    "a size beyond the file": (with_size(TWO[:BLOCK], b"77777777777\0"), "b.jpg should end at byte"),
    "a size of letters": (with_size(TWO[:BLOCK], b"12ab\0".ljust(12, b"\0")), "size b'12ab"),
    "long names without end": (member("x", b"y", b"L") * 3000 + TWO, "at most 16 long names or pax"),
    "pax headers without end": (pax(record("path", "abc")) * 3000 + TWO, "at most 16 long names or pax"),
    "a huge pax header": (pax(record("path", "abc") * 200_000) + TWO, "at most 1,048,576 bytes"),
    "a huge long name": (member("x", b"y" * (2**20 + 1), b"L") + TWO, "at most 1,048,576 bytes"),
    "a pax header of 0 bytes": (pax(b"0 path=abc\n") + TWO, "a pax header with b'0 path"),
    "a pax header that is longer than itself": (pax(b"999999999 path=abc\n") + TWO, "a pax header with b'99999"),
    "a pax size below zero": (pax(record("size", "-1")) + TWO, "size b'-1'"),
    "a pax size beyond the file": (pax(record("size", "99999999999")) + TWO, "b.jpg should end at byte"),
    "a map of a sparse file without end": (
        sealed(gnu_sparse()[:BLOCK]) + (bytes(504) + b"\1" + bytes(7)) * 2000,
        "map of a sparse file",
    ),
    "a record without a member": (ONE + pax(record("path", "abc")) + END, "header of a tar expected"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_end_in_one_line_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "some.tar"
    data, said = HOSTILE[kind]
    path.write_bytes(ONE + data + (b"" if "map" in kind else END))
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(ShardError, match=said) as error:
        list(tar_entries(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 2
    assert most < 4 << 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=150),
        st.binary(max_size=1100),
        max_size=5,
    ),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_are_found_as_tarfile_finds_them(tmp_path: Path, files: dict[str, bytes], tar_format: int) -> None:
    data = tarred(files, tar_format)
    expected = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            inner = tar.extractfile(info)
            assert inner
            expected[info.name] = inner.read()
    assert found(tmp_path, data) == (expected, [])


def test_an_entry_says_where_its_headers_begin(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    path.write_bytes(ONE + pax(record("path", "long")) + TWO + END)
    assert list(tar_entries(path)) == [TarEntry("a.jpg", 512, 3, 0), TarEntry("long", 2560, 3, 1024)]
