"""Equal pictures have equal digests, damaged ones are skipped, and thumbnails need room."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.duplicates.fingerprints import Fingerprints, fingerprints_of, open_splits
from hjepa_shards.errors import InputError, ManifestError
from tests.hjepa_shards.duplicates.test_find_duplicates import photos, png, split_of
from tests.hjepa_shards.duplicates.test_perceptual_hash import tile
from tests.hjepa_shards.verifying.test_verify_split import flip, index_of


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    images = photos(range(5), label=3)
    return [
        split_of(tmp_path, "a/train", images),
        split_of(tmp_path, "b/train", {"one": (png(tile(7)), 1), "same": (png(tile(2)), 1)}),
    ]


def test_samples_of_all_splits_are_in_one_row(folders: list[Path]) -> None:
    splits = open_splits(folders)
    seen: list[tuple[int, int]] = []
    prints = fingerprints_of(splits, 2, lambda done, total: seen.append((done, total)))
    assert [split.start for split in splits] == [0, 5]
    assert [prints.split_number(sample) for sample in range(7)] == [0] * 5 + [1] * 2
    assert prints.labels.tolist() == [3] * 5 + [1] * 2
    assert prints.is_whole.all()
    assert seen[-1] == (7, 7)
    equal = (prints.digests[:, None] == prints.digests[None]).all(-1)
    assert np.argwhere(np.triu(equal, 1)).tolist() == [[2, 6]]
    assert prints.hashes[2] == prints.hashes[6]
    assert (prints.thumbnails[2] == prints.thumbnails[6]).all()
    prints.close()


def test_any_number_of_threads_finds_the_same(shards: Path) -> None:
    splits = open_splits([shards / "digits" / "train", shards / "photos" / "train"])
    with fingerprints_of(splits, 1) as one, fingerprints_of(splits, 4) as four:
        for name in ("digests", "hashes", "is_whole", "is_telling", "labels", "thumbnails"):
            assert (getattr(one, name) == getattr(four, name)).all()


def test_damage_is_marked_and_does_not_spread(folders: list[Path]) -> None:
    tar = folders[0] / "000000.tar"
    flip(tar, int(index_of(tar).row(1).image_offset) + 30)
    flip(folders[1] / "000000.tar.index", 70)
    with fingerprints_of(open_splits(folders), 2) as prints:
        assert prints.is_whole.tolist() == [True, False, True, True, True, False, True]


def test_a_folder_without_a_manifest_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        open_splits([*folders, tmp_path])


def test_thumbnails_are_not_begun_where_they_do_not_fit(
    shards: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_splits([shards / "digits" / "train"])
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    Fingerprints(splits).close()
    assert list(small_disk.iterdir()) == []
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    with pytest.raises(InputError, match="TMPDIR"):
        Fingerprints(splits)
