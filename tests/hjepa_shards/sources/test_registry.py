"""The literal of all sources, and what `open_split` refuses on arrival."""

from pathlib import Path

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.sources.registry import SOURCES, open_split


def test_every_source_describes_itself() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert all((source.description, source.classes, source.images, source.splits))
        assert set(source.default_splits) <= set(source.splits)


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.layout])
def test_a_source_without_its_raw_folder_says_what_to_do(name: str) -> None:
    with pytest.raises(InputError, match=r"expected, nothing given; [\w`]+"):
        open_split(name, None, SOURCES[name].splits[0])


def test_wrong_names_get_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'cifr10': unknown; did you mean cifar10"):
        open_split("cifr10", tmp_path, "train")
    with pytest.raises(InputError, match="split 'unlabelled' is unknown; did you mean unlabeled"):
        open_split("stl10", tmp_path, "unlabelled")
    with pytest.raises(InputError, match="needs no raw data"):
        open_split("digits", tmp_path, "train")
    with pytest.raises(InputError, match="cannot be filtered by classes"):
        open_split("cifar10", tmp_path, "train", classes=tmp_path)
