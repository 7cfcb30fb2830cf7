"""A split looked at: rows of all its samples, pixels of some, names and captions of those."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.reports.split_survey import Survey, counts_by
from hjepa_shards.shards.manifest import load_manifest
from tests.hjepa_shards.verifying.test_verify_split import flip


def survey(folder: Path) -> Survey:
    return Survey(folder, load_manifest(folder))


def foreign(folder: Path, samples: dict[str, bytes]) -> Path:
    """A third-party tar, indexed."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_tars(folder)
    return folder


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_rows_are_those_of_every_sample(shards: Path) -> None:
    batches = list(read_split(shards / "digits" / "train", image_size=8, batch=64))
    labels = np.concatenate([batch.labels[batch.valid] for batch in batches])
    with survey(shards / "digits" / "train") as open_survey:
        rows = open_survey.rows()
    assert rows.table["label"].tolist() == labels.tolist()
    assert set(rows.table["width"].tolist()) == {8}
    assert rows.num_shards == 5


def test_a_large_split_is_judged_by_whole_shards_chosen_by_key(shards: Path) -> None:
    with survey(shards / "digits" / "train") as open_survey:
        rows = open_survey.rows(most=100)
        assert (len(rows.table), rows.num_shards) == (96, 2)
        again = open_survey.rows(most=100)
        assert again.table.tobytes() == rows.table.tobytes()
        assert open_survey.rows(most=1).num_shards == 1


def test_samples_are_chosen_without_repetition_and_the_same_each_time(shards: Path) -> None:
    with survey(shards / "scattered" / "train") as open_survey:
        for count in (1, 7, 60, 199, 200, 1000):
            chosen = open_survey.choose(count)
            assert len(chosen) == len(set(chosen)) == min(count, 200)
            assert all(0 <= sample < 200 for sample in chosen)
            assert chosen == open_survey.choose(count)


def test_a_sample_is_shown_with_its_name_and_pixels(shards: Path) -> None:
    with survey(shards / "photos" / "train") as open_survey:
        shown = open_survey.show(11)
    batch = next(iter(read_split(shards / "photos" / "train", image_size=64, batch=12, crop_share=1)))
    with Image.open(io.BytesIO(shown.image)) as image:
        difference = np.asarray(image).astype(int) - batch.images[11]
    assert np.abs(difference).mean() < 6
    assert shown.name.startswith(("china/", "flower/"))
    assert (shown.width, shown.height, shown.label, shown.damage) == (64, 64, -1, "")


def test_few_pixels_are_shown_exactly(shards: Path) -> None:
    with survey(shards / "digits" / "train") as open_survey:
        shown = open_survey.show(3)
    batch = next(iter(read_split(shards / "digits" / "train", image_size=8, batch=4, crop_share=1)))
    with Image.open(io.BytesIO(shown.image)) as image:
        assert np.array_equal(np.asarray(image), batch.images[3])


def test_a_damaged_sample_is_shown_as_damaged(shards: Path, tmp_path: Path) -> None:
    split = Path(shutil.copytree(shards / "photos" / "train", tmp_path / "photos" / "train"))
    flip(split / "photos-train-000000.tar", 600)
    with survey(split) as open_survey:
        assert "crc32" in open_survey.show(0).damage
        assert open_survey.show(0).image == b""
        assert open_survey.show(1).damage == ""


def test_names_and_captions_of_third_party_tars(tmp_path: Path) -> None:
    long = "n" * 150  # longer than a plain header holds
    folder = foreign(
        tmp_path / "mine" / "train",
        {
            "dir/one.jpg": picture(50, 40),
            "dir/one.txt": b"first caption",
            "dir/one.json": json.dumps({"captions": ["first caption", "second", 3]}).encode(),
            f"{long}.jpg": picture(300, 200),
            f"{long}.txt": "größer".encode(),
            f"{long}.json": b"not json",
        },
    )
    with survey(folder) as open_survey:
        one, two = open_survey.show(0), open_survey.show(1)
    assert (one.name, one.captions) == ("dir/one", ("first caption", "second"))
    assert (two.name, two.captions) == ("", ("größer",))
    with Image.open(io.BytesIO(two.image)) as image:
        assert image.size == (144, 96)


def test_codes_are_counted_under_their_names_the_commonest_first() -> None:
    assert counts_by(np.array([2, 2, 1, 9], np.uint8), ["none", "gray", "rgb"]) == {"rgb": 2, "gray": 1, "code 9": 1}
