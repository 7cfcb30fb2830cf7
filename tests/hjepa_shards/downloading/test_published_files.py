"""From a server to a folder that `build` reads: what is fetched, kept, recognised and refused."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hjepa_shards.downloading.published_files import (
    DOWNLOADS,
    IMAGENET,
    RemoteFile,
    download,
    imagenet_instructions,
    space_needed,
)
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.registry import SOURCES, open_split
from hjepa_shards.storage.http_download import Patience
from tests.hjepa_shards.small_downloads import ARCHIVE, pinned
from tests.hjepa_shards.storage.bad_server import Answer, Server, serving

QUICK = Patience(tries=4, first_wait_s=0.01, timeout_s=5)


def get(raw: Path, **more: object) -> list[Path]:
    return download("cifar10", raw, patience=QUICK, **more)  # type: ignore[arg-type]


def visible(raw: Path) -> list[str]:
    return sorted(path.name for path in raw.iterdir() if path.name != ".lock")


def test_what_was_fetched_is_unpacked_and_read(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "cifar10"
    server.script = [Answer(ends_after=5000), Answer(status=503)]
    assert get(raw) == [raw / "cifar-10-batches-py"]
    assert visible(raw) == ["cifar-10-batches-py"]
    assert len(open_split("cifar10", raw, "train").samples) == 15


def test_what_is_there_needs_no_network(server: Server, tmp_path: Path) -> None:
    get(tmp_path / "raw")
    server.requests.clear()
    get(tmp_path / "raw")
    assert server.requests == []


def test_an_archive_that_is_there_is_checked_and_unpacked_without_network(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / ARCHIVE).write_bytes(server.files[ARCHIVE])
    get(raw, keep_archives=True)
    assert server.requests == []
    assert visible(raw) == ["cifar-10-batches-py", ARCHIVE]


def test_a_wrong_archive_of_the_user_s_is_named_and_left_alone(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / ARCHIVE).write_bytes(b"half of it")
    with pytest.raises(ShardError, match=rf"{ARCHIVE}: .* expected, 10 with .* found; remove it"):
        get(raw)
    assert (raw / ARCHIVE).read_bytes() == b"half of it"


def test_a_mirror_is_a_folder_with_the_same_names(server: Server, tmp_path: Path) -> None:
    with serving() as mirror:
        mirror.files = server.files
        get(tmp_path / "raw", url_base=mirror.url("pub/data/"))
        assert mirror.requests[0][0] == f"/pub/data/{ARCHIVE}"
    assert server.requests == []
    assert visible(tmp_path / "raw") == ["cifar-10-batches-py"]


def test_a_mirror_with_other_bytes_is_refused(server: Server, tmp_path: Path) -> None:
    with serving() as mirror:
        data = server.files[ARCHIVE]
        mirror.files[ARCHIVE] = data[:-1] + bytes([data[-1] ^ 1])
        with pytest.raises(ShardError, match="sha256"):
            get(tmp_path / "raw", url_base=mirror.url())
    assert visible(tmp_path / "raw") == []


def test_a_file_that_is_read_as_it_is_stays_with_a_sign_that_it_was_checked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    data = os.urandom(5000)
    monkeypatch.setitem(DOWNLOADS, "cifar10", (replace(pinned(server, "images.tar", data), is_exact=False),))
    assert get(raw) == [raw / "images.tar"]
    assert visible(raw) == ["images.tar", "images.tar.sha256"]
    checked = subprocess.run(["sha256sum", "-c", "images.tar.sha256"], cwd=raw, capture_output=True, check=False)
    assert checked.returncode == 0
    server.requests.clear()
    get(raw)
    (raw / "images.tar.sha256").unlink()  # as if the user had put it there
    get(raw)
    assert server.requests == []
    (raw / "images.tar.sha256").write_text(f"{'0' * 64}  images.tar\n")  # of another edition
    (raw / "images.tar").write_bytes(data[:-1])
    with pytest.raises(ShardError, match="4,999"):
        get(raw)


def test_only_the_files_of_the_splits_are_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tuple(pinned(server, f"{split}.bin", split.encode(), splits=(split,)) for split in ("train", "test"))
    monkeypatch.setitem(DOWNLOADS, "cifar10", files)
    get(tmp_path / "raw", splits=["test"])
    assert visible(tmp_path / "raw") == ["test.bin", "test.bin.sha256"]
    get(tmp_path / "raw")
    assert "train.bin" in visible(tmp_path / "raw")


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    server.otherwise = Answer(pause_s=0.2)
    with killed_after(raw, 1), pytest.raises(InputError, match="another process is downloading here"):
        get(raw)
    server.otherwise = Answer()
    get(raw)


@contextmanager
def killed_after(raw: Path, num_bytes: int) -> Iterator[None]:
    """A command line under way: the block runs once this many bytes have arrived, then it is killed with -9."""
    [file] = DOWNLOADS["cifar10"]
    code = (
        "from hjepa_shards.downloading.published_files import DOWNLOADS, RemoteFile\n"
        "from hjepa_shards.cli import main\n"
        f"DOWNLOADS['cifar10'] = ({file!r},)\nmain()"
    )
    part = raw / f"{ARCHIVE}.part"
    with subprocess.Popen([sys.executable, "-c", code, "download", "cifar10", "--raw", str(raw)]) as process:
        try:
            for _ in range(6000):
                if part.exists() and part.stat().st_size >= num_bytes:
                    break
                time.sleep(0.01)
            assert part.exists(), "nothing arrived"
            yield
        finally:
            os.kill(process.pid, signal.SIGKILL)


def test_killed_with_9_the_same_command_continues(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    server.otherwise = Answer(pause_s=0.2)
    with killed_after(raw, 20_000):
        pass
    arrived = (raw / f"{ARCHIVE}.part").stat().st_size
    assert arrived < len(server.files[ARCHIVE])
    server.otherwise = Answer()
    get(raw)
    assert visible(raw) == ["cifar-10-batches-py"]
    assert server.requests[-1][1] == f"bytes={arrived}-"


def test_space_is_counted_before_and_what_is_there_is_not_needed_again(server: Server, tmp_path: Path) -> None:
    [file] = DOWNLOADS["cifar10"]
    raw = tmp_path / "raw" / "not yet there"
    space = space_needed("cifar10", raw)
    assert (space.to_fetch, space.at_most, space.in_the_end) == (
        file.num_bytes,
        file.num_bytes + file.unpacked_bytes,
        file.unpacked_bytes,
    )
    assert space.free > 0
    assert space_needed("cifar10", raw, keep_archives=True).in_the_end == space.at_most
    raw.mkdir(parents=True)
    (raw / f"{ARCHIVE}.part").write_bytes(bytes(1000))
    space = space_needed("cifar10", raw)
    assert (space.to_fetch, space.at_most) == (file.num_bytes - 1000, file.num_bytes + file.unpacked_bytes - 1000)
    (raw / f"{ARCHIVE}.part").unlink()
    get(raw)
    assert space_needed("cifar10", raw).at_most == 0


def test_a_disk_that_is_too_small_is_reported_before_anything_is_fetched(
    server: Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = DOWNLOADS["cifar10"]
    monkeypatch.setitem(DOWNLOADS, "cifar10", (replace(file, unpacked_bytes=30_000_000),))
    with pytest.raises(
        InputError, match=r"0\.03 GB needed on the way and 0\.03 GB in the end, 0\.00 GB free; make room"
    ):
        get(small_disk)
    assert server.requests == []


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ("cifar", {}, "did you mean cifar10?"),
        ("mnist", {}, "known: cifar10, cifar100, coco, places365, stl10"),
        ("folder", {}, "cannot be downloaded"),
        ("imagenet", {}, "cannot be downloaded"),
        ("cifar10", {"splits": ["val"]}, "'val' cannot be downloaded; known: test, train"),
        ("cifar10", {"small": True}, "no small edition"),
    ],
)
def test_what_cannot_be_downloaded_is_said(tmp_path: Path, source: str, more: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        download(source, tmp_path, **more)  # type: ignore[arg-type]


# ---- the literal


def test_every_source_that_can_be_downloaded_is_listed_with_the_splits_that_are_built() -> None:
    for source in SOURCES.values():
        listed = {split for file in DOWNLOADS.get(source.name, ()) for split in file.splits}
        assert (source.download == "yes") == bool(listed), source.name
        assert set(source.default_splits) <= listed or not listed, source.name
    assert {name.removesuffix("-small") for name in DOWNLOADS} <= set(SOURCES)


@pytest.mark.parametrize("file", [file for files in (*DOWNLOADS.values(), IMAGENET) for file in files], ids=str)
def test_every_file_is_described_in_full(file: RemoteFile) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert file.url.startswith(("https://", "http://"))
    assert file.num_bytes > 1_000_000
    assert bool(file.unpacks_to) == (file.unpacked_bytes > 0)
    assert file.unpacks_to == () or file.unpacked_bytes >= 0.99 * file.num_bytes


@pytest.mark.slow  # importing torchvision takes longer than all the others
def test_addresses_and_digests_are_torchvision_s() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    imagenet = pytest.importorskip("torchvision.datasets.imagenet")
    for source, theirs in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100), ("stl10", datasets.STL10)):
        [file] = DOWNLOADS[source]
        assert (file.url, file.name) == (theirs.url, theirs.filename)
    places = datasets.Places365
    base = places._BASE_URL
    for small, edition in ((False, "places365"), (True, "places365-small")):
        images = {base + name for (_, is_small), (name, _) in places._IMAGES_META.items() if is_small == small}
        lists = {base + name for name, _ in places._DEVKIT_META.values()}
        assert {file.url for file in DOWNLOADS[edition]} == images | lists
    for file in IMAGENET:
        assert (file.name, file.md5) == imagenet.ARCHIVE_META[file.splits[0]]


def test_instructions_for_imagenet_name_every_file_with_its_size_and_digest(tmp_path: Path) -> None:
    text = imagenet_instructions("imagenet100", tmp_path)
    for file in IMAGENET:
        assert file.name in text
        assert f"{file.num_bytes:,}" in text
        assert file.md5 in text
    assert f"hjepa-shards verify-raw imagenet100 --raw {tmp_path}" in text
