"""Image files by name, from a folder and from a tar: the same, also in another process."""

import os
import pickle
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.raw_files import FolderFiles, RawFiles, TarFiles, absent
from hjepa_shards.sources.tar_members import tar_members
from tests.hjepa_shards.sources.layouts import put, tarred

FILES = {
    "b/2.jpg": b"two",
    "a/1.JPEG": b"one",
    "a/caf\u00e9 \u732b.png": b"three",
    "a/.hidden.jpg": b"-",
    "a/._1.JPEG": b"-",
    ".trash/3.jpg": b"-",
    "a/notes.txt": b"-",
}
SEEN = {name for name, data in FILES.items() if data != b"-"}


@pytest.fixture(params=["folder", "tar"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> RawFiles:
    if request.param == "folder":
        return FolderFiles(put(tmp_path / "files", FILES))
    path = tmp_path / "files.tar"
    path.write_bytes(tarred(FILES))
    return TarFiles(path)


def test_folder_and_tar_hold_the_same_images(files: RawFiles) -> None:
    assert len(list(files.names())) == len(SEEN)
    assert set(files.names()) == SEEN
    assert all(files.read(name) == FILES[name] for name in SEEN)


def test_both_travel(files: RawFiles) -> None:
    arrived = pickle.loads(pickle.dumps(files))
    assert all(arrived.read(name) == FILES[name] for name in SEEN)


def test_a_worker_reads_a_tar_without_its_headers(tmp_path: Path) -> None:
    images = {f"{number:05d}.jpg": b"%d" % number for number in range(2000)}
    path = tmp_path / "files.tar"
    path.write_bytes(tarred(images))
    parcel = pickle.dumps(TarFiles(path))
    assert len(parcel) < 25 * len(images) + 1000
    with path.open("r+b") as file:
        for _, offset, _ in tar_members(path):
            os.pwrite(file.fileno(), bytes(512), offset - 512)
    arrived = pickle.loads(parcel)
    assert all(arrived.read(name) == data for name, data in images.items())


def test_names_that_are_not_utf8_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tarred({os.fsdecode(b"\xff\xfe.jpg"): b"odd"}))
    files = TarFiles(path)
    assert list(files.names()) == ["\\xff\\xfe.jpg"]
    assert files.read("\\xff\\xfe.jpg") == b"odd"


def test_a_name_that_is_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tarred({"a.jpg": b"1", "b.jpg": b"2", "./a.jpg": b"3"}))
    with pytest.raises(ShardError, match=r"files.tar: holds a.jpg twice"):
        TarFiles(path).names()


def test_a_tar_that_shrank_since_it_was_listed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tarred({"a.jpg": b"x" * 5000}))
    files = TarFiles(path)
    assert list(files.names()) == ["a.jpg"]
    path.write_bytes(b"x" * 600)
    with pytest.raises(ShardError, match=r"5,000 bytes of a.jpg expected at 512, 88 found; it has changed"):
        files.read("a.jpg")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        files.read("a.jpg")


def test_a_few_absent_files_are_named_and_many_are_refused(tmp_path: Path) -> None:
    listed = [f"{number:03d}.jpg" for number in range(200)]
    files = FolderFiles(put(tmp_path / "files", dict.fromkeys([*listed[2:], "extra.jpg"], b"x")))
    assert absent(files, listed, Path("list.txt")) == {"000.jpg", "001.jpg"}
    assert absent(files, listed[2:], Path("list.txt")) == frozenset()
    (tmp_path / "files" / "100.jpg").unlink()
    with pytest.raises(
        InputError, match=r"200 images expected, as list.txt names them, 3 of them missing, 000.jpg the"
    ):
        absent(files, listed, Path("list.txt"))
