"""One shard: members and sidecar rows that find them, statistics that add up."""

import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.building.shard_columns import Slice
from hjepa_shards.building.shard_writer import (
    MEASURED_EVERY,
    MEASURED_FIRST,
    Members,
    Statistics,
    add_statistics,
    record_name,
    sha256_of,
    write_shard,
)
from hjepa_shards.images.encode import KEEP, PNG, encode, moments_of
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.shards.sample_table import to_row
from hjepa_shards.sources.base import Provenance, RawSplit
from hjepa_shards.storage.build_output import FolderTarget

RNG = np.random.Generator(np.random.Philox(2))
IMAGES = [RNG.integers(0, 256, (5 + i, 7, 3), dtype=np.uint8) for i in range(4)]
SAMPLES = [RawSample(name=f"s{i}.png", index=0, label=i, captions=(f"eine Überschrift {i}", "other")) for i in range(4)]


def slice_of(samples: Sequence[RawSample]) -> Slice:
    return Slice((*to_row(sample), False) for sample in samples)


class InMemory(RawSplit):
    class_names = tuple("abcd")
    provenance = Provenance(upstream="", licence="", citation="")

    def list_samples(self) -> Sequence[RawSample]:
        return SAMPLES

    def read(self, sample: RawSample) -> bytes | np.ndarray:
        return b"broken" if sample.label == 2 else IMAGES[sample.label]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    target = FolderTarget(tmp_path)
    target.prepare()
    seen: list[tuple[int, int]] = []
    members = Members(image="png", labels=True, captions=True)
    listing = slice_of(SAMPLES)
    write_shard(target, "a-b-000000.tar", InMemory(), listing, members, PNG, lambda *done: seen.append(done))
    assert seen == [(1, 6 if i == 2 else (5 + i) * 7 * 3) for i in range(4)]
    return tmp_path / "a-b-000000.tar"


def test_every_sample_has_the_same_members_in_order(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        assert names == [f"s{i}.{extension}" for i in (0, 1, 3) for extension in ("png", "cls", "txt", "json")]
        read = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert read["s3.cls"] == b"3"
    assert read["s1.txt"].decode() == "eine Überschrift 1"
    assert json.loads(read["s1.json"]) == {"captions": ["eine Überschrift 1", "other"]}


def test_the_sidecars_offsets_and_checksums_are_those_of_the_tar(shard: Path) -> None:
    tar = shard.read_bytes()
    index = shard.with_name(shard.name + ".index").read_bytes()
    assert index[:8] == b"HJSI\1\0\x50\0"
    assert struct.unpack("<IQQ", index[8:28]) == (1 | 2 | 4, 3, len(tar))
    for i, label in enumerate((0, 1, 3)):
        row = struct.unpack("<QQQQIIIIIIIIiBBBBII", index[64 + 80 * i : 144 + 80 * i])
        image, text, more = row[0], row[1], row[2]
        assert zlib.crc32(tar[image : image + row[4]]) == row[5]
        assert tar[image : image + 4] == b"\x89PNG"
        assert tar[text : text + row[6]].decode() == f"eine Überschrift {label}"
        assert zlib.crc32(tar[text : text + row[6]]) == row[7]
        assert zlib.crc32(tar[more : more + row[8]]) == row[9]
        assert row[10:13] == (7, 5 + label, label)


def test_the_record_holds_what_the_manifest_needs(shard: Path) -> None:
    record = json.loads((shard.parent / record_name(shard.name)).read_text())
    assert (record["samples"], record["bytes"]) == (3, shard.stat().st_size)
    assert [(e["name"], e["index"]) for e in record["exclusions"]] == [("s2.png", 0)]
    assert record["statistics"]["images"] == 3
    assert record["statistics"]["height"] == [5, 8, 5 + 6 + 8]


def test_digests_are_those_of_the_files(shard: Path) -> None:
    record = json.loads((shard.parent / record_name(shard.name)).read_text())
    assert record["sha256"] == sha256_of(shard)
    assert record["index_sha256"] == sha256_of(shard.with_name(shard.name + ".index"))


def test_of_kept_images_a_few_are_measured_and_none_is_changed(tmp_path: Path) -> None:
    samples = [RawSample(name=f"{i:03}.png", index=i) for i in range(MEASURED_EVERY + 2)]
    files = [encode(np.full((4, 4, 3), i % 256, np.uint8), PNG).data for i in range(len(samples))]

    class Files(InMemory):
        def read(self, sample: RawSample) -> bytes:
            return files[sample.index]

    target = FolderTarget(tmp_path)
    target.prepare()
    members = Members(image="png", labels=False, captions=False)
    write_shard(target, "a.tar", Files(), slice_of(samples), members, KEEP, lambda *done: None)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [tar.extractfile(name).read() for name in tar.getnames()] == files  # type: ignore[union-attr]
    record = json.loads(target.read(record_name("a.tar")))
    measured = [moments_of(files[i]) for i in (*range(MEASURED_FIRST), MEASURED_EVERY)]
    assert record["statistics"]["channel_moments"] == np.sum(measured, axis=0).tolist()
    assert record["statistics"]["images"] == len(samples)


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    def of(images: Sequence[np.ndarray]) -> dict[str, object]:
        statistics = Statistics()
        for image in images:
            encoded = encode(image, PNG)
            statistics.add(encoded.info.width, encoded.info.height, encoded.moments)
        return statistics.as_dict()

    whole = of(IMAGES)
    assert add_statistics([of(IMAGES[:1]), of([]), of(IMAGES[1:])]) == whole
    pixels = np.concatenate([image.reshape(-1, 3) for image in IMAGES]).astype(int)
    assert whole["channel_moments"] == np.stack([[len(pixels)] * 3, pixels.sum(0), (pixels**2).sum(0)], 1).tolist()
    assert add_statistics([of([])])["images"] == 0
