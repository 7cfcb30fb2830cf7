"""Untrusted archives: whatever is in them, nothing lands outside the folder and nothing is left half done."""

import gzip
import io
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.storage.safe_unpack import is_unpacked, unpack

FILES = {"set/a/1.bin": b"one", "set/b.bin": bytes(3_000_000), "set/empty": b"", "set/ä ü.txt": b"text"}
MOST_BYTES = 3_500_000


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in members:
            bundle.writestr(name, data)
    return path


def run(archive: Path, *names: str) -> None:
    unpack(archive, names=names or ("set",), most_bytes=MOST_BYTES, progress=lambda done, total: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_what_is_in_the_archive_is_in_the_folder(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    if name == "x.zip":
        zip_of(archive, ("set/", b""), *FILES.items())
    else:
        suffix = name.removeprefix("x.tar").lstrip(".")
        tar_of(archive, special("./set", tarfile.DIRTYPE), *FILES.items(), mode=f"w:{suffix}")
    seen: list[tuple[int, int]] = []
    assert not is_unpacked(archive, ("set/a", "set/empty"))
    unpack(
        archive,
        names=("set/a", "set/empty"),
        most_bytes=MOST_BYTES,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert contents(tmp_path / "set") == {name.removeprefix("set/"): data for name, data in FILES.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", name]
    assert is_unpacked(archive, ("set/a", "set/empty"))
    assert seen[-1] == (archive.stat().st_size, archive.stat().st_size)
    assert all(done <= total for done, total in seen)


def test_files_at_the_top_are_beside_the_archive_and_hidden_ones_are_excluded(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", ("a.txt", b"1"), ("b.txt", b"2"), (".lock", b"3"), ("._a.txt", b"4"))
    (tmp_path / "b.txt").write_bytes(b"older")
    run(archive, "a.txt", "b.txt")
    assert contents(tmp_path) | {"x.tar": b""} == {"a.txt": b"1", "b.txt": b"2", "x.tar": b""}


def test_of_a_name_that_occurs_twice_the_last_one_counts(tmp_path: Path) -> None:
    run(tar_of(tmp_path / "x.tar", ("set/a", b"first"), ("set/a", b"last")))
    assert (tmp_path / "set/a").read_bytes() == b"last"


def a_link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


def a_pipe(name: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFIFO | 0o777) << 16
    return info, b""


def small_lie(path: Path) -> Path:
    """A zip whose headers say that 4 MB are 10 bytes."""
    zip_of(path, ("set/a", bytes(4_000_000)))
    data = path.read_bytes()
    assert data.count(struct.pack("<L", 4_000_000)) == 2
    path.write_bytes(data.replace(struct.pack("<L", 4_000_000), struct.pack("<L", 10)))
    return path


def encrypted(path: Path) -> Path:
    zip_of(path, ("set/a", b"1234"))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def cut(path: Path, whole: Path) -> Path:
    data = whole.read_bytes()
    whole.unlink()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "parent": lambda f: tar_of(f / "x.tar", ("set/a", b"1"), ("../outside", b"x")),
    "parent inside": lambda f: tar_of(f / "x.tar", ("set/../../outside", b"x")),
    "absolute": lambda f: tar_of(f / "x.tar", ("set/a", b"1"), (f"{f.parent}/outside", b"x")),
    "symlink and a file through it": lambda f: tar_of(
        f / "x.tar", special("set/link", tarfile.SYMTYPE, "../.."), ("set/link/outside", b"x")
    ),
    "symlink over a file": lambda f: tar_of(
        f / "x.tar", special("set", tarfile.SYMTYPE, str(f.parent / "victim")), ("set", b"x")
    ),
    "hard link outside": lambda f: tar_of(
        f / "x.tar", special("set/link", tarfile.LNKTYPE, "../../victim"), ("set/link", b"x")
    ),
    "device": lambda f: tar_of(f / "x.tar", special("set/null", tarfile.CHRTYPE)),
    "block device": lambda f: tar_of(f / "x.tar", special("set/disk", tarfile.BLKTYPE)),
    "pipe": lambda f: tar_of(f / "x.tar", special("set/pipe", tarfile.FIFOTYPE)),
    "a file as a folder": lambda f: tar_of(f / "x.tar", ("set/a", b"1"), ("set/a/b", b"x")),
    "a folder as a file": lambda f: tar_of(f / "x.tar", ("set/a/b", b"1"), ("set/a", b"x")),
    "very deep": lambda f: tar_of(f / "x.tar", ("set/" + "d/" * 3000 + "a", b"1"), mode="w"),
    "bomb": lambda f: tar_of(f / "x.tar.gz", ("set/a", bytes(50_000_000)), mode="w:gz"),
    "bomb of names": lambda f: tar_of(f / "x.tar.gz", *((f"set/{i}", b"") for i in range(900)), mode="w:gz"),
    "bomb of folders": lambda f: tar_of(
        f / "x.tar.gz", *(special(f"set/{i}", tarfile.DIRTYPE) for i in range(900)), mode="w:gz"
    ),
    "zip slip": lambda f: zip_of(f / "x.zip", ("set/a", b"1"), ("../outside", b"x")),
    "zip absolute": lambda f: zip_of(f / "x.zip", ("set/a", b"1"), (f"{f.parent}/outside", b"x")),
    "zip symlink": lambda f: zip_of(f / "x.zip", a_link("set/link", "../.."), ("set/link/outside", b"x")),
    "zip pipe": lambda f: zip_of(f / "x.zip", a_pipe("set/pipe")),
    "zip bomb": lambda f: zip_of(f / "x.zip", ("set/a", bytes(50_000_000))),
    "zip bomb of many": lambda f: zip_of(f / "x.zip", *((f"set/{i}", bytes(10_000)) for i in range(300))),
    "zip that lies about sizes": lambda f: small_lie(f / "x.zip"),
    "zip with a password": lambda f: encrypted(f / "x.zip"),
    "cut tar": lambda f: cut(f / "x.tar", tar_of(f / "whole", *FILES.items())),
    "cut tar.gz": lambda f: cut(f / "x.tar.gz", tar_of(f / "whole", ("set/a", os.urandom(99_999)), mode="w:gz")),
    "cut zip": lambda f: cut(f / "x.zip", zip_of(f / "whole", *FILES.items())),
    "another archive": lambda f: tar_of(f / "x.tar", ("other/a", b"1")),
    "an empty tar": lambda f: tar_of(f / "x.tar"),
    "an empty file": lambda f: cut(f / "x.tar", zip_of(f / "w")),
    "a web page": lambda f: cut(f / "x.tar.gz", f / "page"),
    "a gzip that is no tar": lambda f: cut(f / "x.tar.gz", f / "zipped page"),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_broken_archive_ends_with_one_error_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "victim").write_bytes(b"untouched")
    (folder / "page").write_bytes(b"<html>not here</html>" * 99)
    (folder / "zipped page").write_bytes(gzip.compress(b"<html>not here</html>" * 99))
    archive = make(folder)
    before = archive.read_bytes()
    with pytest.raises(ShardError) as error:
        run(archive)
    assert str(archive) in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "victim"}
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    assert {path.name for path in folder.iterdir()} - {"page", "zipped page"} == {archive.name}
    assert archive.read_bytes() == before


def test_a_bomb_is_stopped_at_the_bound(small_disk: Path) -> None:
    """On a disk of 2 MiB the bound of 1 MB must come before the end of the disk."""
    archive = tar_of(small_disk / "x.tar.gz", ("set/a", bytes(50_000_000)), mode="w:gz")
    with pytest.raises(ShardError, match=r"at most 1,000,000 bytes expected in it, more found at 'set/a'"):
        unpack(archive, names=("set",), most_bytes=1_000_000, progress=lambda done, total: None)


def test_a_full_disk_is_reported_and_its_room_given_back(small_disk: Path) -> None:
    archive = tar_of(small_disk / "x.tar.gz", ("set/a", bytes(3_000_000)), mode="w:gz")
    with pytest.raises(InputError, match="No space left"):
        run(archive)
    assert [path.name for path in small_disk.iterdir()] == ["x.tar.gz"]


def test_what_is_in_the_way_is_not_touched(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", ("set/a", b"1"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "own").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"set: is in the way.*move it"):
        run(archive, "set/a")
    assert contents(tmp_path / "set") == {"own": b"mine"}


def test_flipped_bytes_end_in_our_own_errors_or_in_files_below_the_folder(tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.Philox(11))
    small = {"set/a/1.bin": b"one" * 50, "set/b.bin": bytes(999), "set/c": b""}
    (tmp_path / "raw").mkdir()
    seeds = [
        tar_of(tmp_path / "x.tar", *small.items()),
        tar_of(tmp_path / "x.tar.gz", *small.items(), mode="w:gz"),
        zip_of(tmp_path / "x.zip", *small.items()),
    ]
    refused = 0
    for round_number in range(300):
        seed = seeds[round_number % 3]
        data = bytearray(seed.read_bytes())
        for place in generator.integers(0, len(data), 1 + round_number % 4):
            data[place] = generator.integers(0, 256)
        folder = tmp_path / "raw" / str(round_number)
        folder.mkdir()
        (folder / seed.name).write_bytes(data)
        try:
            run(folder / seed.name)
        except (ShardError, InputError):
            refused += 1
        assert not list(folder.glob(".*"))
    assert len(list((tmp_path / "raw").iterdir())) == 300
    assert {path.name for path in tmp_path.iterdir()} == {"raw", *(seed.name for seed in seeds)}
    assert refused > 50


def test_killed_while_unpacking_it_is_done_again(tmp_path: Path) -> None:
    files = {f"set/{i:05}.bin": b"%d" % i for i in range(3_000)}
    archive = tar_of(tmp_path / "x.tar", *files.items())
    code = (
        "import sys; from pathlib import Path; from hjepa_shards.storage.safe_unpack import unpack\n"
        "unpack(Path(sys.argv[1]), names=('set',), most_bytes=10**9, progress=lambda done, total: None)"
    )
    begun = tmp_path / ".x.tar.unpacking"
    with subprocess.Popen([sys.executable, "-c", code, str(archive)]) as process:
        for _ in range(3000):
            if (begun / "set" / "00100.bin").exists():
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert begun.exists()
    assert not is_unpacked(archive, ("set",))
    (begun / "set" / "of an earlier try").write_bytes(b"")
    unpack(archive, names=("set",), most_bytes=10**9, progress=lambda done, total: None)
    assert contents(tmp_path / "set") == {name.removeprefix("set/"): data for name, data in files.items()}
    assert not begun.exists()


def test_killed_while_things_take_their_places_the_rest_is_moved(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", ("a/1", b"1"), ("b", b"2"), ("c/3", b"3"))
    run(archive, "a", "b", "c")
    staged = tmp_path / ".x.tar.unpacked"
    staged.mkdir()
    shutil.move(tmp_path / "c", staged / "c")
    archive.write_bytes(b"is not read again")
    assert not is_unpacked(archive, ("a", "b"))
    run(archive, "a", "b", "c")
    assert (tmp_path / "c" / "3").read_bytes() == b"3"
    assert not staged.exists()
