"""Keys come from tar headers, or are not given at all."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.shards.tar import scan
from tests.hjepa_shards.verifying.test_verify_split import flip, index_of, shard


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "train"))


def test_keys_come_in_the_order_of_the_rows(split: Path) -> None:
    rows = index_of(shard(split, 1)).checked_rows()
    keys = keys_of(shard(split, 1), rows)
    assert keys == [member.key for member in scan(shard(split, 1)) if member.extension == "png"]
    assert keys_of(shard(split, 1), rows[[5, 2]]) == [keys[5], keys[2]]


def test_a_damaged_header_tells_no_key_and_the_others_still_do(split: Path) -> None:
    rows = index_of(shard(split, 1)).checked_rows()
    keys = keys_of(shard(split, 1), rows)
    flip(shard(split, 1), int(rows[9]["image_offset"]) - 512)  # the first letter of the name
    flip(shard(split, 1), int(rows[20]["image_offset"]) - 300)  # zeros after it
    assert keys_of(shard(split, 1), rows) == [None if i in (9, 20) else key for i, key in enumerate(keys)]


def test_another_shard_or_none_tells_no_keys(split: Path) -> None:
    rows = index_of(shard(split, 1)).checked_rows()
    assert keys_of(shard(split, 0), rows) == [None] * 48
    assert keys_of(split / "none.tar", rows) == [None] * 48


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_are_too_long_for_a_header_are_found(split: Path, tmp_path: Path, form: int) -> None:
    folder = tmp_path / "long" / "train"
    folder.mkdir(parents=True)
    names = [f"{'a' * 120}/{'b' * 90}{i}" for i in range(3)] + ["ünï-" + "c" * 200, "short"]
    image = next(member for member in scan(shard(split, 0)) if member.extension == "png")
    data = shard(split, 0).read_bytes()[image.offset : image.offset + image.num_bytes]
    with tarfile.open(folder / "0.tar", "w", format=form) as tar:
        for name in names:
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_tars(folder)
    assert keys_of(folder / "0.tar", Sidecar(folder / "0.tar.index").checked_rows()) == names
