"""What `build webdataset` and `index` settle alike about the samples of third-party tars."""

import gzip
import io
import tarfile
from collections.abc import Callable
from itertools import islice
from operator import itemgetter
from pathlib import Path

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.shards.manifest import Manifest, load_manifest
from hjepa_shards.shards.raw_sample import decode_key
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.shards.tar import scan
from hjepa_shards.shards.tar_headers import JOINED, NO_END_MARK
from hjepa_shards.sources.registry import open_split
from hjepa_shards.verifying.repair import repair
from hjepa_shards.verifying.verify_images import verify_deep
from tests.conftest import Command
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred


def linked(folder: Path) -> Path:
    """A tar in which b is a hard link to a, and c has a's image and a label of its own."""
    path = folder / "x.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data, link in [
            ("a.jpg", jpeg(1), ""),
            ("a.cls", b"0", ""),
            ("b.jpg", b"", "a.jpg"),
            ("b.cls", b"", "a.cls"),
            ("c.cls", b"1", ""),
            ("c.jpg", b"", "a.jpg"),
            ("d.jpg", b"", "missing.jpg"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if link:
                info.type, info.linkname = tarfile.LNKTYPE, link
            tar.addfile(info, io.BytesIO(data))
    return path


def by_build(raw: Path, out: Path, image: str | None = None) -> tuple[Path, Manifest]:
    [manifest] = build("webdataset", raw=str(raw), out=out, options=BuildOptions(workers=1, image=image))
    return out / "webdataset" / "train", manifest


def by_index(raw: Path, out: Path, image: str | None = None) -> tuple[Path, Manifest]:
    return raw.parent, index_tars(raw.parent, image=image)


def pictures(folder: Path) -> list[tuple[bytes, int]]:
    """The pixels and the label of each sample, in order of label."""
    [batch] = read_split(folder, image_size=8, batch=load_manifest(folder).num_samples, threads=1)
    found = [(image.tobytes(), int(label)) for image, label in zip(batch.images, batch.labels, strict=True)]
    return sorted(found, key=itemgetter(1))


Way = Callable[..., tuple[Path, Manifest]]
ways = pytest.mark.parametrize("way", [by_build, by_index])


@ways
def test_hard_links_are_the_members_that_they_name(tmp_path: Path, way: Way) -> None:
    folder, manifest = way(linked(tmp_path / "raw"), tmp_path / "out")
    found = pictures(folder)
    assert len({image for image, _ in found}) == 1
    assert [label for _, label in found] == [0, 0, 1]
    [excluded] = manifest.exclusions
    assert excluded["reason"] == "its image is a hard link to missing.jpg, which is not before it in the tar"
    assert verify_deep(folder) == []


@ways
def test_joined_tars_are_read_to_the_last(tmp_path: Path, way: Way) -> None:
    tars = [tarred({f"{n}.jpg": jpeg(n), f"{n}.cls": b"%d" % n}) for n in range(3)]
    path = put(tmp_path, {"raw/x.tar": b"".join(tars)}) / "raw" / "x.tar"
    folder, manifest = way(path, tmp_path / "out")
    assert [label for _, label in pictures(folder)] == [0, 1, 2]
    assert list(manifest.notes) == [f"1 {JOINED}; the first: {path}, byte {len(tars[0]):,}"]
    assert verify_deep(folder) == []


def test_joined_tars_are_read_to_the_last_when_compressed(tmp_path: Path) -> None:
    tars = [tarred({f"{n}.jpg": jpeg(n)}) for n in range(3)]
    put(tmp_path, {"a.tar.gz": gzip.compress(b"".join(tars)), "b.tar.gz": b"".join(map(gzip.compress, tars))})
    for name in "ab":
        assert len(open_split("webdataset", f"{tmp_path}/{name}.tar.gz", "train").samples) == 3


@ways
def test_a_tar_without_an_end_mark_is_read_and_noted(tmp_path: Path, way: Way) -> None:
    whole = tarred({"a.jpg": jpeg(1), "a.cls": b"1"})
    path = put(tmp_path, {"raw/x.tar": whole[: whole.rindex(b"1") + 512]}) / "raw" / "x.tar"
    folder, manifest = way(path, tmp_path / "out")
    assert [label for _, label in pictures(folder)] == [1]
    assert [note.partition(";")[0] for note in manifest.notes] == [f"1 {NO_END_MARK}"]
    (tmp_path / "raw" / "x.tar").write_bytes(whole[: whole.rindex(b"1") + 700])
    with pytest.raises(ShardError, match="cut short"):
        way(path, tmp_path / "again")


@ways
def test_the_image_of_names_with_dots_is_chosen_by_name(tmp_path: Path, way: Way) -> None:
    files = {}
    for n in range(3):
        files |= {f"{n:04}.left.jpg": jpeg(n), f"{n:04}.right.jpg": jpeg(n + 9), f"{n:04}.cls": b"5"}
        files |= {f"{n:04}.right.cls": b"%d" % n}
    path = put(tmp_path, {"raw/x.tar": tarred(files)}) / "raw" / "x.tar"
    with pytest.raises(
        InputError, match=r"in 3 samples, none found; .* left.jpg \(3\), right.jpg \(3\); choose one with --image left"
    ):
        way(path, tmp_path / "out")
    folder, manifest = way(path, tmp_path / "right", "Right.JPG")
    assert [label for _, label in pictures(folder)] == [0, 1, 2]
    assert manifest.settings["image"] == "right.jpg"
    assert verify_deep(folder) == []
    for broken in list(folder.glob("*.index")):
        broken.unlink()
    assert repair(folder, raw=str(path)).left == ()
    if way is by_build:
        assert (folder / "webdataset-train-000000.tar").read_bytes().count(b"0001%2Eright.jpg") == 1
        folder, _ = way(path, tmp_path / "left", "left.jpg")
        assert [label for _, label in pictures(folder)] == [5, 5, 5]


@ways
def test_the_manifest_of_samples_with_one_image_says_nothing_of_it(tmp_path: Path, way: Way) -> None:
    path = put(tmp_path, {"raw/x.tar": tarred({"a.jpg": jpeg(1)})}) / "raw" / "x.tar"
    _, manifest = way(path, tmp_path / "out")
    assert "image" not in manifest.settings
    assert list(manifest.notes) == []


@ways
def test_labels_in_json_are_noticed(tmp_path: Path, way: Way) -> None:
    files = {"a.jpg": jpeg(1), "a.json": b'{"label": 3}', "b.jpg": jpeg(2), "b.json": b'{"class": 1}', "b.cls": b"1"}
    path = put(tmp_path, {"raw/x.tar": tarred(files)}) / "raw" / "x.tar"
    _, manifest = way(path, tmp_path / "out")
    assert "1 samples without .cls whose .json has a label, which is not read; the first: a: label 3" in manifest.notes


def test_only_third_party_tars_have_an_image_to_choose(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only samples of third-party tars have several members"):
        build("digits", raw=None, out=tmp_path, options=BuildOptions(image="x.jpg"))
    put(tmp_path, {"x.tar": tarred({"a.jpg": jpeg(1)})})
    for wrong in ("", "../a.jpg", "left", "a.txt", "..jpg"):
        with pytest.raises(InputError, match="what follows the key in a member's name expected"):
            open_split("webdataset", tmp_path, "train", image=wrong)


@ways
def test_names_in_latin_1_have_keys_that_say_their_bytes(tmp_path: Path, way: Way) -> None:
    data = tarred({"cafX.jpg": jpeg(1), "cafX.cls": b"1"}).replace(b"cafX", b"caf\xe9")
    grown = ord(b"\xe9") - ord("X")
    for at in (0, data.index(b"caf\xe9.cls")):
        checksum = int(data[at + 148 : at + 154], 8) + grown
        data = data[: at + 148] + b"%06o" % checksum + data[at + 154 :]
    path = put(tmp_path, {"raw/x.tar": data}) / "raw" / "x.tar"
    folder, _ = way(path, tmp_path / "out")
    assert [label for _, label in pictures(folder)] == [1]
    [tar] = folder.glob("*.tar")
    [key] = keys_of(tar, Sidecar(tar.with_name(f"{tar.name}.index")).checked_rows())
    assert decode_key(str(key)) == "caf\\xe9"
    assert verify_deep(folder) == []


def test_index_says_what_it_excludes_and_how_the_tars_are_sorted(tmp_path: Path, command: Command) -> None:
    for n in range(40):
        files = {"README": b"read me", "._x.jpg": b"hidden"}
        for i in range(8):
            files |= {f"{n}-{i}.jpg": jpeg(n), f"{n}-{i}.cls": b"%d" % n}
        put(tmp_path, {f"{n:02}.tar": tarred(files)})
    code, out, _ = command("index", tmp_path, "--source", "a", "--split", "b")
    said = " ".join(out.split())
    assert code == 0
    assert "sorted by class: a window of 16 shards shows 16 of 40 classes on average, shuffled ones 39" in said
    put(tmp_path, {"99.tar": tarred({"x.jpg": b"no image", "y.jpg": jpeg(0)})})
    code, out, _ = command("index", tmp_path)
    assert code == 3
    assert "excluded x:" in out


def test_an_index_that_ended_at_the_first_end_mark_is_found_by_verify(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {"x.tar": tarred({"a.jpg": jpeg(1)}) + tarred({"b.jpg": jpeg(2), "c.jpg": jpeg(3)})})
    monkeypatch.setattr("hjepa_shards.building.index_tars.scan", lambda path, remark: islice(scan(path), 1))
    index_tars(tmp_path)
    monkeypatch.undo()
    code, out, _ = command("verify", tmp_path)
    assert code == 1
    assert "x.tar: 2 samples that its index does not know, b the first" in " ".join(out.split())
    index_tars(tmp_path)
    assert command("verify", tmp_path)[0] == 0
