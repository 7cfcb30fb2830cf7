"""A second build notices that the raw data is another, by name; what was only touched is no change."""

import json
import os
from pathlib import Path

import pytest

from hjepa_shards.building import same_input
from hjepa_shards.building.build import BuildOptions, Part, build, build_part
from hjepa_shards.errors import BuildMismatch
from hjepa_shards.sources.registry import open_split
from tests.conftest import Command
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred

OPTIONS = BuildOptions(samples_per_shard=4)


def images(count: int = 10) -> dict[str, bytes]:
    return {f"a/{number:02d}.jpg": jpeg(number) for number in range(count)}


def other(path: Path, data: bytes) -> None:
    """`data` in place of what is there, written a while later."""
    path.write_bytes(data)
    later(path)


def later(path: Path) -> None:
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now + 10**9))


def test_changed_files_are_named_and_refused_touched_and_moved_ones_are_not(tmp_path: Path) -> None:
    raw, out = put(tmp_path / "raw" / "train", images()).parent, tmp_path / "out"
    build("folder", raw=raw, out=out, options=OPTIONS)
    before = files_of(out)
    later(raw / "train/a/03.jpg")
    build("folder", raw=raw, out=out, options=OPTIONS)
    moved = raw.rename(tmp_path / "moved")
    build("folder", raw=moved, out=out, options=OPTIONS)
    stamps = json.loads((out / "folder/train/.journal/raw.json").read_bytes())
    assert sorted(path for path, *_ in stamps) == [str(moved / "train" / name) for name in sorted(images())]
    other(moved / "train/a/03.jpg", jpeg(99, side=32))
    with pytest.raises(BuildMismatch, match=r"03.jpg: [\d,]+ bytes then, [\d,]+ now \(1 of 10 files.*--name or --out"):
        build("folder", raw=moved, out=out, options=OPTIONS)
    data = bytearray(jpeg(3))
    data[-3] ^= 1
    other(moved / "train/a/03.jpg", bytes(data))
    for again in (
        lambda: build("folder", raw=moved, out=out, options=OPTIONS),
        lambda: build_part("folder", raw=moved, out=out, options=OPTIONS, part=Part(number=1, of=2)),
    ):
        with pytest.raises(BuildMismatch, match=r"03.jpg: other bytes than then"):
            again()
    assert {name: data for name, data in files_of(out).items() if ".part-" not in name} == before
    other(moved / "train/a/03.jpg", jpeg(3))
    build("folder", raw=moved, out=out, options=OPTIONS)


def test_check_input_reads_everything(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = put(tmp_path / "raw" / "train", images()).parent, tmp_path / "out"
    arguments = ("build", "folder", "--raw", raw, "--out", out, "--samples-per-shard", 4, "--workers", 1)
    assert command(*arguments)[0] == 0
    assert command(*arguments, "--check-input")[0] == 0
    path = raw / "train/a/03.jpg"
    stat = path.stat()
    data = bytearray(jpeg(3))
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time are as before
    assert command(*arguments)[0] == 0
    code, _, err = command(*arguments, "--check-input")
    assert code == 2
    assert "1 of 3 shards, folder-train-00000" in err
    assert err.count("\n") == 1


def test_of_many_files_a_thousand_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_input, "_MOST_FILES", 5)
    raw, out = put(tmp_path / "raw" / "train", images()).parent, tmp_path / "out"
    build("folder", raw=raw, out=out, options=OPTIONS)
    stamps = json.loads((out / "folder/train/.journal/raw.json").read_bytes())
    assert len(stamps) == 5
    for number in range(10):
        other(raw / f"train/a/{number:02d}.jpg", jpeg(number + 50, side=40))
    with pytest.raises(BuildMismatch, match=r"5 of 5 files"):
        build("folder", raw=raw, out=out, options=OPTIONS)


@pytest.mark.parametrize("left", [b"", b"{", b"[[1]]", b"[]"])
def test_stamps_that_are_none_are_no_obstacle(tmp_path: Path, left: bytes) -> None:
    raw, out = put(tmp_path / "raw" / "train", images(3)).parent, tmp_path / "out"
    build("folder", raw=raw, out=out, options=OPTIONS)
    (out / "folder/train/.journal/raw.json").write_bytes(left)
    build("folder", raw=raw, out=out, options=OPTIONS)


def test_containers_and_lists_are_stamped(tmp_path: Path) -> None:
    tar = put(tmp_path / "tars", {"x-000.tar": tarred({"0.jpg": jpeg(0)})}) / "x-000.tar"
    listed = put(tmp_path / "list", {"captions.csv": b"image,caption\na.jpg,one\n", "a.jpg": jpeg(1)})
    for source, raw, files in (
        ("webdataset", tar.parent, {tar}),
        ("image-text", listed, {listed / "captions.csv", listed / "a.jpg"}),
    ):
        split = open_split(source, raw, "train")
        assert set(split.files_of(iter(split.samples))) == files
