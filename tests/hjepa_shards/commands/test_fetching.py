"""download and verify-raw as a user types them."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hjepa_shards.downloading.published_files import DOWNLOADS
from hjepa_shards.shards.manifest import load_manifest
from tests.conftest import Command
from tests.hjepa_shards.small_downloads import ARCHIVE, cifar10_archive, pinned
from tests.hjepa_shards.storage.bad_server import Answer, Server, serving
from tests.hjepa_shards.verifying.test_verify_split import flip


def test_download_verify_raw_and_build_end_well(server: Server, command: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    server.script = [Answer(ends_after=9000), Answer(status=500)]
    code, out, err = command("download", "cifar10", "--raw", raw)
    assert (code, err) == (0, "")
    assert f"to fetch into {raw}; of the disk" in out
    assert " free" in out
    assert f"{ARCHIVE}: the connection ended at byte 9,000; again in" in " ".join(out.split())
    assert f"there {raw / 'cifar-10-batches-py'}" in out
    code, out, _ = command("download", "cifar10", "--raw", raw)
    assert (code, len(server.requests)) == (0, 3)
    assert "there already" in out
    # few images, and not the published bytes: both are reported
    code, out, _ = command("verify-raw", "cifar10", "--raw", raw)
    assert code == 1
    said = " ".join(out.split())
    assert "wrong cifar10 train: 50,000 images expected, as published, 15 found" in said
    assert "data_batch_1: md5 c99cafc152244af753f735de768cd75f expected, as published" in said
    out_folder = tmp_path / "shards"
    assert command("build", "cifar10", "--raw", raw, "--out", out_folder, "--samples-per-shard", 8)[0] == 0
    assert command("verify", out_folder)[0] == 0


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    if mode == "zip":
        with zipfile.ZipFile(buffer, "w") as bundle:
            for name, data in files.items():
                bundle.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def small_places() -> dict[str, bytes]:
    """By address; as published, with three images."""
    names = [f"Places365_val_{i:08}.jpg" for i in range(1, 4)]
    lists = {
        "categories_places365.txt": b"".join(b"/a/class%d %d\n" % (i, i) for i in range(365)),
        "places365_train_standard.txt": b"/a/class0/1.jpg 0\n",
        "places365_val.txt": b"".join(b"%s %d\n" % (name.encode(), i) for i, name in enumerate(names)),
        "places365_test.txt": b"Places365_test_00000001.jpg\n",
    }
    images = packed({f"val_256/{name}": jpeg(i) for i, name in enumerate(names)}, "tar")
    return {"filelist_places365-standard.tar": packed(lists, "tar"), "val_256.tar": images}


def small_coco() -> dict[str, bytes]:
    names = [f"{i:012}.jpg" for i in (139, 285, 632)]
    captions = {
        "images": [{"id": i, "file_name": name, "license": 1} for i, name in enumerate(names)],
        "annotations": [{"id": 9 - i, "image_id": i % 3, "caption": f"caption {i}"} for i in range(6)],
        "licenses": [{"id": 1, "name": "CC BY", "url": ""}],
    }
    text = json.dumps(captions).encode()
    notes = {f"annotations/captions_{split}2017.json": text for split in ("train", "val")}
    return {
        "annotations_trainval2017.zip": packed(notes, "zip"),
        "val2017.zip": packed({"val2017/": b"", **{f"val2017/{name}": jpeg(i) for i, name in enumerate(names)}}, "zip"),
    }


@pytest.mark.parametrize(
    ("source", "edition", "files", "kept"),
    [
        ("places365", "places365-small", small_places(), {"categories_places365.txt", "val_256.tar"}),
        ("coco", "coco", small_coco(), {"annotations", "val2017"}),
    ],
    ids=["places365", "coco"],
)
def test_what_is_fetched_in_several_archives_is_what_build_reads(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    edition: str,
    files: dict[str, bytes],
    kept: set[str],
) -> None:
    raw = tmp_path / "raw"
    with serving() as server:
        server.files = files
        small = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
        entries = tuple(
            replace(file, num_bytes=small[file.name][0], sha256=small[file.name][1]) if file.name in small else file
            for file in DOWNLOADS[edition]
        )
        monkeypatch.setitem(DOWNLOADS, edition, entries)
        options = ["--small"] if edition != source else []
        arguments = ["--raw", raw, "--split", "val", *options, "--url-base", server.url()]
        code, out, err = command("download", source, *arguments)
        assert (code, err) == (0, ""), out
        assert len(server.requests) == 2
        command("download", source, *arguments)
        assert len(server.requests) == 2
    assert kept <= {path.name for path in raw.iterdir()}
    assert not list(raw.glob("*.zip"))
    assert command("build", source, "--raw", raw, "--split", "val", "--out", tmp_path / "out")[0] == 0
    assert load_manifest(tmp_path / "out" / source / "val").num_samples == 3


def test_a_mirror_may_be_named(server: Server, command: Command, tmp_path: Path) -> None:
    with serving() as mirror:
        mirror.files = server.files
        assert command("download", "cifar10", "--raw", tmp_path / "raw", "--url-base", mirror.url("x"))[0] == 0
    assert server.requests == []


def test_a_file_that_is_not_there_is_one_line(server: Server, command: Command, tmp_path: Path) -> None:
    server.files.clear()
    code, _, err = command("download", "cifar10", "--raw", tmp_path / "raw")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {server.url(ARCHIVE)}: the file expected, answer 404")


@pytest.fixture
def two(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of all that can be downloaded, which is cifar10 and cifar100 here."""
    data, unpacked_bytes = cifar10_archive(tmp_path / "other", images=2)
    file = pinned(server, "100.tar.gz", data, unpacks_to=("cifar-10-batches-py",), unpacked_bytes=unpacked_bytes)
    known = {"cifar10": DOWNLOADS["cifar10"], "cifar100": (file,)}
    for name in set(DOWNLOADS) - set(known):
        monkeypatch.delitem(DOWNLOADS, name)
    monkeypatch.setitem(DOWNLOADS, "cifar100", known["cifar100"])
    return server


def test_several_sources_and_all_of_them_are_fetched_into_folders_of_their_own(
    two: Server, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command("download", "cifar10", "cifar100", "digits", "cifar10")
    assert (code, err) == (0, "")
    assert [path for path, *_ in two.requests] == [f"/{ARCHIVE}", "/100.tar.gz"]
    assert "digits: its images come with this program" in out
    assert out.rstrip().endswith(
        "next: hjepa-shards build cifar10 --raw data/raw/cifar10\n"
        "      hjepa-shards build cifar100 --raw data/raw/cifar100"
    )
    for name in ("cifar10", "cifar100"):
        assert (tmp_path / "data" / "raw" / name / "cifar-10-batches-py").is_dir()
    code, out, err = command("download", "--all", "--raw", tmp_path / "big disk")
    assert (code, err, len(two.requests)) == (0, "", 4)
    said = " ".join(out.split())
    assert (
        "skipped, they cannot be downloaded automatically: imagenet, imagenet100; `hjepa-shards download imagenet`"
        in said
    )
    assert f"build cifar10 --raw '{tmp_path}/big disk/cifar10'" in out
    assert {path.name for path in (tmp_path / "big disk").iterdir()} == {"cifar10", "cifar100"}


def test_one_that_fails_does_not_keep_the_others_back(two: Server, command: Command, tmp_path: Path) -> None:
    del two.files[ARCHIVE]
    code, out, err = command("download", "cifar10", "cifar100", "--raw", tmp_path / "raw")
    assert code == 2
    assert "there" in out
    assert (tmp_path / "raw" / "cifar100" / "cifar-10-batches-py").is_dir()
    first, last = err.splitlines()
    assert first.startswith(f"error: {two.url(ARCHIVE)}: the file expected, answer 404")
    assert last.startswith("error: 1 of 2 sources were not downloaded: cifar10;")
    assert "build cifar100" in out
    assert "build cifar10 " not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "names of sources or --all expected, neither found"),
        (["cifar10", "--all"], "names of sources or --all expected, both found"),
        (["cifar10", "cifar11"], "cifar11: cannot be downloaded; did you mean cifar10?"),
        (["cifar10", "cifar100", "--split", "val"], "cifar10: split 'val' cannot be downloaded"),
        (["cifar10", "--small"], "has no small edition"),
        (["cifar10", "cifar100", "--small"], "has no small edition"),
    ],
)
def test_what_is_wrong_with_the_last_source_is_said_before_the_first_is_fetched(
    two: Server, command: Command, tmp_path: Path, arguments: list[str], said: str
) -> None:
    code, _, err = command("download", *arguments, "--raw", tmp_path / "raw")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert two.requests == []
    assert not (tmp_path / "raw").exists()


def test_force_fetches_again_what_is_there_and_keeps_the_old_until_the_new_is_right(
    server: Server, command: Command, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    arguments = ["download", "cifar10", "--raw", raw]
    command(*arguments)
    batch = raw / "cifar-10-batches-py" / "test_batch"
    right = batch.read_bytes()
    batch.write_bytes(b"changed")
    (batch.parent / "more").touch()
    assert "there already" in command(*arguments)[1]
    assert batch.read_bytes() == b"changed"
    server.script = [Answer(status=404)]
    code, out, _ = command(*arguments, "--force")
    assert code == 2
    assert "0 B in the end" in " ".join(out.split())
    assert batch.read_bytes() == b"changed"
    code, out, err = command(*arguments, "--force")
    assert (code, err, len(server.requests)) == (0, "", 3)
    assert batch.read_bytes() == right
    assert not (batch.parent / "more").exists()
    assert not list(raw.glob("*.gz"))
    # an archive that is kept as it is is fetched again, too
    (raw / ARCHIVE).write_bytes(b"something else")
    assert command(*arguments, "--force", "--keep-archives")[0] == 0
    assert (raw / ARCHIVE).read_bytes() == server.files[ARCHIVE]


def test_what_is_not_fetched_from_here_is_explained(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("download", "imagenet", "--raw", tmp_path / "in")
    assert code == 0
    assert "https://image-net.org" in out
    assert str(tmp_path / "in") in out
    code, out, _ = command("download", "digits")
    assert code == 0
    assert "nothing to download" in out
    code, _, err = command("download", "folder")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "in").exists()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes with 3 images each, and one class that has none."""
    raw = tmp_path / "pictures"
    for i in range(6):
        path = raw / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 30), (i, 2 * i, 3 * i)).save(path)
    return raw


def test_good_raw_data_is_right(command: Command, pictures: Path) -> None:
    code, out, err = command("verify-raw", "folder", "--raw", pictures)
    assert (code, err) == (0, "")
    assert "right folder train: 6 images, 6 of them decoded" in out
    assert command("verify-raw", "digits", "--deep")[0] == 0


def test_everything_that_is_wrong_is_named(command: Command, pictures: Path) -> None:
    (pictures / "train" / "c").mkdir()
    (pictures / "train" / "a" / "4.png").write_bytes(b"")
    (pictures / "train" / "b" / "[red]5.png").write_bytes(b"not an image")
    (pictures / "images.zip.part").write_bytes(b"x")
    code, out, err = command("verify-raw", "folder", "--raw", pictures, "--workers", 2)
    assert (code, err) == (1, "")
    said = " ".join(out.split())
    assert "4.png: a file with bytes expected, an empty one found" in said
    assert "images.zip.part: an unfinished download" in said
    assert "wrong folder train: 1 of 3 classes have no image: c" in said
    assert "2 of 7 images cannot be decoded: " in said
    assert "b/[red]5.png (no image of a known format" in said


def test_a_split_that_cannot_be_opened_cannot_be_judged_and_the_others_are(command: Command, pictures: Path) -> None:
    code, out, err = command("verify-raw", "folder", "--raw", pictures, "--split", "train", "--split", "val")
    assert code == 2
    assert "right folder train" in out
    assert err.startswith("error: ")
    assert str(pictures / "val") in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "'nope'"),
        (["cifar10", "--raw", "/nonexistent"], "no such folder"),
        (["cifar10", "--raw", "/dev/null", "--split", "dev"], "'dev'"),
        (["digits", "--workers", "0"], "--workers"),
    ],
)
def test_wrong_arguments_are_a_line_each(command: Command, arguments: list[str], said: str) -> None:
    code, _, err = command("verify-raw", *arguments)
    assert code == 2
    assert said in err
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_the_real_files_are_the_published_ones_and_one_bit_is_enough(
    command: Command, real_data: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "cifar-100-python"
    shutil.copytree(real_data / "cifar100-test" / "cifar-100-python", raw)
    (raw / "test").chmod(0o644)
    code, out, _ = command("verify-raw", "cifar100", "--raw", tmp_path, "--split", "test", "--deep")
    assert code == 0
    assert "right cifar100 test: 10,000 images, 10,000 of them decoded" in out
    assert "right byte for byte as published: test" in out
    flip(raw / "test", 8_000_000)
    code, out, _ = command("verify-raw", "cifar100", "--raw", tmp_path, "--split", "test")
    assert code == 1
    assert "md5 f0ef6b0ae62326f3e7ffdfab6717acfc expected" in " ".join(out.split())
