"""Headers of tars: the same members as `tarfile` finds, and only our own errors for what is none."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.formats.tar_members import tar_members
from tests.hjepa_shards.sources.layouts import tarred

FILES = {
    "data/": b"",
    "data/a.jpg": b"a" * 700,
    "data/empty.jpg": b"",
    "./data/b.jpg": b"b" * 512,
    f"data/{'long' * 40}.jpg": b"c" * 3,
    f"{'deep/' * 30}d.jpg": b"d" * 1025,
    "data/\u732b.jpg": b"e",
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "some.tar"
    path.write_bytes(data)
    return path


def found(path: Path, start: int = 0, stop: int | None = None) -> dict[str, bytes]:
    data = path.read_bytes()
    return {name: data[offset : offset + size] for name, offset, size in tar_members(path, start, stop)}


@pytest.mark.parametrize("tar_format", FORMATS)
def test_the_members_are_the_regular_files_that_tarfile_finds(tmp_path: Path, tar_format: str) -> None:
    files = {name: data for name, data in FILES.items() if tar_format != "ustar" or "longlong" not in name}
    path = written(tmp_path, tarred(files, FORMATS[tar_format]))
    expected = {}
    with tarfile.open(path) as tar:
        for info in tar:
            if info.isreg():
                member = tar.extractfile(info)
                assert member
                expected[info.name.removeprefix("./")] = member.read()
    assert found(path) == expected
    assert len(expected) == len(files) - 1


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"odd{kind!r}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert found(written(tmp_path, buffer.getvalue())) == {"a.jpg": b"abc"}


def test_a_tar_within_a_tar_is_read_in_place(tmp_path: Path) -> None:
    inner = {"x.jpg": b"x" * 2000, "y.jpg": b"y"}
    path = written(tmp_path, tarred({"one.tar": tarred(inner), "two.tar": tarred({"z.jpg": b"z"})}))
    one, two = tar_members(path)
    assert found(path, one.offset, one.offset + one.num_bytes) == inner
    assert found(path, two.offset, two.offset + two.num_bytes) == {"z.jpg": b"z"}


def test_sizes_above_8_gib_are_read(tmp_path: Path) -> None:
    """GNU's base-256 size; the file is sparse, nothing is written."""
    info = tarfile.TarInfo("large.bin")
    info.size = 9 << 30
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024)
    assert [tuple(member) for member in tar_members(path)] == [("large.bin", 512, 9 << 30)]


def test_a_tar_cut_short_anywhere_says_so(tmp_path: Path) -> None:
    whole = tarred({"a.jpg": b"a" * 700, "b.jpg": b"b" * 100})
    end = 512 + 1024 + 512 + 512
    for length in (*range(0, end + 512, 37), end, end + 511):
        with pytest.raises(ShardError, match="cut short: fetch it again"):
            found(written(tmp_path, whole[:length]))
    assert len(found(written(tmp_path, whole[: end + 512]))) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html>\n<html>404 Not Found" + b" " * 600, "a tar expected at byte 0, .* this is a web page"),
        (b"\x1f\x8b\x08" + b"x" * 600, "this is a gzip file: unpack it with gunzip"),
        (b"PK\x03\x04" + b"x" * 600, "this is a zip file"),
        (b"\xff\xd8\xff" + b"x" * 600, "this is no tar: fetch it again"),
        (b"<html>", "none; it was cut short"),
        (b"", "a header or the end mark of a tar expected at byte 0, none"),
        (tarred({"a.jpg": b"a"})[:1024] + b"\1" * 1024, r"a header of a tar expected at byte 1,024, b'\\x01"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        found(written(tmp_path, data))


def test_a_file_that_cannot_be_opened_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.tar: cannot be read: No such file"):
        list(tar_members(tmp_path / "none.tar"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_headers_give_our_own_errors_or_members_inside_the_file(tmp_path: Path, data: st.DataObject) -> None:
    flipped = bytearray(tarred(FILES, data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, len(flipped) // 512 - 1)) * 512
        offset = block + data.draw(st.one_of(st.integers(0, 511), st.integers(124, 157)))
        flipped[offset] = data.draw(st.sampled_from([0, 32, 45, 48, 49, 55, 57, 76, 83, 95, 103, 120, 128, 255]))
        if data.draw(st.booleans()):  # so that the change gets past the checksum
            header = flipped[block : block + 512]
            checksum = sum(header) - sum(header[148:156]) + 256
            flipped[block + 148 : block + 156] = b"%06o\0 " % checksum
    path = written(tmp_path, bytes(flipped))
    try:
        members = list(tar_members(path))
    except ShardError:
        return
    assert all(offset >= 512 and size >= 0 and offset + size <= len(flipped) for _, offset, size in members)


def test_only_headers_are_read(tmp_path: Path) -> None:
    """A gigabyte of holes between two headers: reading it would take a second, skipping it takes nothing."""
    path = tmp_path / "holes.tar"
    with path.open("wb") as file:
        for number in range(40):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 1 << 30
            file.write(info.tobuf())
            file.seek(1 << 30, os.SEEK_CUR)
        file.write(bytes(1024))
    assert len(list(tar_members(path))) == 40
