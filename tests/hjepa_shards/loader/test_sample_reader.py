"""One sample, checked and decoded."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import ChecksumMismatch, DecodeError, SidecarError
from hjepa_shards.loader.sample_reader import DAMAGE, SampleReader
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.verifying.test_verify_split import flip


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "train"))


def reader_of(split: Path) -> SampleReader:
    manifest = load_manifest(split)
    return SampleReader(LocalStore(split, manifest), manifest)


def test_every_sample_has_the_pixels_and_the_label_of_the_raw_data(split: Path) -> None:
    raw = open_split("digits", None, "train")
    by_key = {sample.name.rpartition(".")[0] or sample.name: sample for sample in raw.samples}
    manifest = load_manifest(split)
    renamed = {key: name for key, (name, _) in manifest.renamed.items()}
    reader = reader_of(split)
    for i in range(manifest.num_samples):
        located = reader.locate(i)
        (key,) = keys_of(split / manifest.shard_name(located.shard), [located.row])
        assert key
        sample = next(s for s in (by_key.get(key), by_key.get(renamed.get(key, ""))) if s)
        assert located.label == sample.label
        expected = np.asarray(raw.read(sample))
        assert np.array_equal(reader.pixels(located), expected[..., None].repeat(3, -1))
    reader.close()


def test_samples_after_an_empty_shard_are_found(shards: Path) -> None:
    manifest = load_manifest(shards / "digits" / "train")
    reader = SampleReader(LocalStore(shards / "digits" / "train", manifest), manifest)
    reader._ends = np.array([0, 48, 48, 96])  # shards of 0, 48, 0, 48 samples
    assert [reader.store.sidecar(1).row(0).key_hash] == [reader.locate(0).row.key_hash]
    assert (reader.locate(47).shard, reader.locate(48).shard) == (1, 3)


def test_a_flipped_bit_in_an_image_is_a_checksum_mismatch(split: Path) -> None:
    located = reader_of(split).locate(50)
    flip(split / "digits-train-000001.tar", int(located.row.image_offset) + 20)
    with pytest.raises(ChecksumMismatch, match="digits-train, shard 1"):
        reader_of(split).pixels(reader_of(split).locate(50))
    reader_of(split).pixels(reader_of(split).locate(51))


def test_a_flipped_bit_in_a_row_is_damage_of_that_sample_alone(split: Path) -> None:
    flip(split / "digits-train-000001.tar.index", 64 + 80 * 2 + 30)
    with pytest.raises(SidecarError):
        reader_of(split).locate(50)
    reader_of(split).locate(49)
    assert SidecarError in DAMAGE


@pytest.mark.parametrize("shrink", [1, 2])
def test_an_image_of_another_size_than_its_row_says_is_damage(split: Path, shrink: int) -> None:
    """As an index of third-party tars would have it: all checksums are right."""
    reader = reader_of(split)
    located = reader.locate(50)
    row = located.row._replace(width=located.width + 1)
    with pytest.raises(DecodeError, match="9 x 8 pixels expected, 8 x 8 found"):
        reader.pixels(located._replace(row=row), shrink=shrink)
    assert DecodeError in DAMAGE
