"""What can be probed is said before anything is read. The rows themselves: test_run.py and test_probe.py."""

from pathlib import Path

import pytest

from hjepa_shards import InputError
from hjepa_train.heldout import held_out_split
from tests.hjepa_shards.test_loader import mix


def test_the_split_to_test_on_is_test_or_the_one_asked_for(shards: Path) -> None:
    assert held_out_split(mix(shards).config, "digits", None) == "test"
    assert held_out_split(mix(shards).config, "digits", "test") == "test"


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        ("digit", None, r"digit: a built source expected, none found; did you mean digits\?"),
        ("coco", None, "build it with `hjepa-shards build coco --raw DIR`"),
        ("photos", None, "another, test or val, to test it on expected, train found"),
        ("digits", "train", "another, train, to test it on expected"),
        ("digits", "val", "another, val, to test it on expected, test, train found"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_line(shards: Path, source: str, split: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        held_out_split(mix(shards).config, source, split)
