"""Tars: plain ustar with fixed metadata one way, anybody's the other."""

import io
import tarfile
from pathlib import Path

import pytest

from hjepa_shards.errors import ShardError
from hjepa_shards.shards.tar import Member, TarWriter, scan

FILES = {"a.jpg": b"x" * 700, "a.cls": b"3", "b%2Fc.jpg": b"", "b%2Fc.cls": b"y" * 512}


def written(files: dict[str, bytes] = FILES) -> tuple[bytes, dict[str, int]]:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    offsets = {name: writer.add(name, data) for name, data in files.items()}
    writer.close()
    assert writer.num_bytes == len(buffer.getvalue())
    return buffer.getvalue(), offsets


def test_tarfile_reads_what_was_written_and_finds_fixed_metadata() -> None:
    data, offsets = written()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.getmembers()
        assert {m.name: tar.extractfile(m).read() for m in found} == FILES  # type: ignore[union-attr]
        for member in found:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.mode, member.isreg()) == (0o644, True)
            assert data[257:263] == b"ustar\0"
    for name, offset in offsets.items():
        assert data[offset : offset + len(FILES[name])] == FILES[name]
    assert len(data) % 512 == 0
    assert data[-1024:] == bytes(1024)


def test_scan_finds_each_member_with_its_key_cut_at_the_first_dot_of_the_base_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("v1.0")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("v1.0/a.Seg.PNG", "b.jpg", "c" * 150 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
    found = list(scan(path))
    data = path.read_bytes()
    assert [(m.key, m.extension) for m in found] == [("v1.0/a", "seg.png"), ("b", "jpg"), ("c" * 150, "jpg")]
    assert all(data[m.offset : m.offset + m.num_bytes] == b"12345" for m in found)


@pytest.mark.parametrize("cut", [100, 512 + 300, 2000, 3 * 512 + 1024 + 100])
def test_a_tar_that_was_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(written()[0][:cut])
    with pytest.raises(ShardError, match=r"a\.tar.*fetch it again"):
        list(scan(path))


def test_members_after_a_damaged_header_are_never_lost_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data, offsets = written()
    for name in FILES:
        damaged = bytearray(data)
        damaged[offsets[name] - 512 + 3] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"a\.tar"):
            list(scan(path))


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08" + bytes(2000)])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.tar"):
        list(scan(path))


def test_a_tar_without_the_end_mark_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(written()[0][:-1024])
    assert [type(member) for member in scan(path)] == [Member] * 4
