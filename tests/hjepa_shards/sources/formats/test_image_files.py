"""Image files by name, from a folder and from a tar: the same, also in another process."""

import os
import pickle
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.formats.image_files import FolderFiles, RawFiles, TarFiles, absent
from hjepa_shards.sources.formats.tar_members import tar_members
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
    found = list(files.members())
    assert sorted(name for name, _ in found) == sorted(SEEN)
    for name, extent in found:
        assert files.read(name, extent) == FILES[name]
        assert name in files
        assert files.extent(name) == extent
    assert "none.jpg" not in files
    assert files.extent("none.jpg") is None


def test_both_travel(files: RawFiles) -> None:
    found = list(files.members())
    assert min(SEEN) in files  # which makes a table that stays here
    arrived = pickle.loads(pickle.dumps(files))
    assert all(arrived.read(name, extent) == FILES[name] for name, extent in found)


def test_a_worker_reads_a_tar_without_its_headers(tmp_path: Path) -> None:
    images = {f"{number:05d}.jpg": b"%d" % number for number in range(2000)}
    path = tmp_path / "files.tar"
    path.write_bytes(tarred(images))
    files = TarFiles(path)
    found = list(files.members())
    parcel = pickle.dumps(files)
    assert len(parcel) < 500  # however many images
    with path.open("r+b") as file:
        for _, offset, _ in tar_members(path):
            os.pwrite(file.fileno(), bytes(512), offset - 512)
    arrived = pickle.loads(parcel)
    assert {name: arrived.read(name, extent) for name, extent in found} == images


def test_names_that_are_not_utf8_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tarred({os.fsdecode(b"\xff\xfe.jpg"): b"odd"}))
    files = TarFiles(path)
    [(name, extent)] = files.members()
    assert name == "\\xff\\xfe.jpg"
    assert files.read(name, extent) == b"odd"


def test_a_name_that_is_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tarred({"a.jpg": b"1", "b.jpg": b"2", "./a.jpg": b"3"}))
    with pytest.raises(ShardError, match=r"files.tar: holds a.jpg twice"):
        list(TarFiles(path).names())


def test_a_tar_that_shrank_since_it_was_listed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "files.tar"
    path.write_bytes(tarred({"a.jpg": b"x" * 5000}))
    files = TarFiles(path)
    [(name, extent)] = files.members()
    path.write_bytes(b"x" * 600)
    with pytest.raises(ShardError, match=r"5,000 bytes of a.jpg expected at 512, 88 found; it has changed"):
        files.read(name, extent)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        files.read(name, extent)


def test_a_few_absent_files_are_named_and_many_are_refused(tmp_path: Path) -> None:
    listed = [f"{number:03d}.jpg" for number in range(200)]
    folder = put(tmp_path / "files", dict.fromkeys([*listed[2:], "extra.jpg"], b"x"))
    files = FolderFiles(folder)
    assert absent(files, listed, Path("list.txt")) == {"000.jpg", "001.jpg"}
    assert absent(files, listed[2:], Path("list.txt")) == frozenset()
    (folder / "100.jpg").unlink()
    with pytest.raises(
        InputError, match=r"200 images expected, as list.txt names them, 3 of them missing, 000.jpg the"
    ):
        absent(FolderFiles(folder), listed, Path("list.txt"))
