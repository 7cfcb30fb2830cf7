"""Third-party tars: indexed by webdataset's rules, the tars untouched, nothing lost silently."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.verifying.verify_split import verify
from tests.hjepa_shards.images.test_image_formats import saved, scene


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


PNG, JPEG = saved(scene(), "PNG"), saved(scene(), "JPEG")


def test_tars_of_webdatasets_writer_are_indexed_and_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    generator = np.random.Generator(np.random.Philox(1))
    images = generator.integers(0, 256, (25, 12, 12, 3), dtype=np.uint8)
    folder = tmp_path / "mine" / "train"
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "s-%03d.tar"), maxcount=10, verbose=0) as writer:
        for i, image in enumerate(images):
            writer.write({"__key__": f"k{i:03}", "png": Image.fromarray(image), "cls": i % 7, "txt": f"no {i}"})
    tars = {path: path.read_bytes() for path in folder.glob("*.tar")}
    manifest = index_tars(folder)
    assert (manifest.source, manifest.split, manifest.members) == ("mine", "train", ["png", "cls", "txt"])
    assert manifest.shard_samples.tolist() == [10, 10, 5]
    assert verify(folder) == []
    assert {path: path.read_bytes() for path in tars} == tars
    [batch] = read_split(folder, image_size=12, batch=25, threads=1)
    assert np.array_equal(batch.images, images)
    assert batch.labels.tolist() == [i % 7 for i in range(25)]


def test_members_of_one_key_are_one_sample_wherever_they_are(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {"x/b.cls": b"1.0", "x/a.cls": b"2\n", "x/b.JPG": JPEG, "x/a.png": PNG, "x/a.json": b"{}"})
    manifest = index_tars(tmp_path, source="s", split="t")
    assert (manifest.name, manifest.num_samples) == ("s-t", 2)
    rows = Sidecar(tmp_path / "a.tar.index").checked_rows()
    data = tar.read_bytes()
    images = [data[int(r["image_offset"]) : int(r["image_offset"]) + int(r["image_bytes"])] for r in rows]
    assert images == [JPEG, PNG]
    assert rows["label"].tolist() == [1, 2]
    assert rows["json_bytes"].tolist() == [0, 2]
    assert manifest.members[1:] == ["cls"]


def test_samples_without_a_readable_image_are_excluded_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": JPEG, "b.jpg": b"rubbish", "c.txt": b"no image", "d.jpg": JPEG})
    manifest = index_tars(tmp_path)
    assert manifest.num_samples == 2
    assert [e["name"] for e in manifest.exclusions] == ["b", "c"]
    assert "txt" in manifest.exclusions[1]["reason"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.jpg": JPEG, "a.cls": b"cat"}, "a.cls: a class number"),
        ({"a.jpg": JPEG, "a.cls": b"cat"}, "an index has no place for class names: `hjepa-shards build webdataset`"),
        ({"a.jpg": JPEG, "a.cls": b"1.5"}, "a.cls: a class number"),
        ({"a.jpg": JPEG, "a.cls": b"-2"}, "a.cls: a class number"),
        ({"a.jpg": JPEG, "a.cls": b"true"}, "a.cls: a class number"),
        ({"a.jpg": JPEG, "a.cls": b"\xff"}, "a.cls: a class number"),
        ({"a.txt": b"x"}, "no images"),
        ({"a.jpg": JPEG, "a.JPG": JPEG}, "a.jpg occurs twice"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    tmp_path: Path, members: dict[str, bytes], said: str
) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=said):
        index_tars(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_broken_tar_among_good_ones_leaves_nothing_half_indexed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": JPEG})
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:600])
    with pytest.raises(ShardError, match=r"b\.tar"):
        index_tars(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_a_folder_without_tars_or_with_built_shards_is_refused(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    for folder, said in ((tmp_path, "x.zip"), (tmp_path / "no", "no such folder")):
        with pytest.raises(InputError, match=said):
            index_tars(folder)
    built = shards / "digits" / "train"
    before = (built / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="hjepa-shards build"):
        index_tars(built)
    copied = tmp_path / "fetched"  # as a user gets it who fetches the shards without the journal
    copied.mkdir()
    for path in built.glob("*.*"):
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="hjepa-shards build"):
        index_tars(copied)
    assert (copied / "manifest.json").read_bytes() == before


def test_indexing_again_gives_the_same_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": JPEG, "a.json": json.dumps({"captions": ["x"]}).encode()})
    index_tars(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    index_tars(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
