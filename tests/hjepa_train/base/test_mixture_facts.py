"""What is known of a mixture: from its manifests, through a run's folder, refused where no run wrote it."""

from pathlib import Path

import pytest

from hjepa_shards import load_mixture
from hjepa_shards.errors import InputError
from hjepa_train import load_run_config
from hjepa_train.base.mixture_facts import FILE, Facts, facts_of, numbers_among, read_facts, write_facts
from tests.hjepa_train.tiny import tiny_run


def test_facts_of_a_mixture_are_its_entries_in_their_order(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    mixture = load_mixture(config.data, "here")
    facts = facts_of(mixture)
    assert [entry.name for entry in facts.entries] == [entry.name for entry in mixture.entries]
    digits, photos = facts.entries
    assert digits.class_names == tuple(map(str, range(10)))
    assert digits.has_labels
    assert not photos.has_captions
    assert facts.class_names[:10] == digits.class_names
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts


def test_a_folder_from_before_has_none(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None


def test_names_are_numbered_by_what_they_are_not_where_they_stand() -> None:
    assert numbers_among(("ant", "bee", "cat"), ("cat", "dog", "ant")) == [2, -1, 0]
    assert numbers_among(("caf\u00e9",), ("cafe\u0301",)) == [0]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"entries": [1]}', b'{"entries": [{"name": "a"}]}', b"\xff", b'{"entries": {"a": []}}'],
)
def test_a_file_that_no_run_wrote_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    if content == b"{}":
        assert read_facts(tmp_path) == Facts()
        return
    with pytest.raises(InputError, match="entries with their class names, as a run wrote them, expected"):
        read_facts(tmp_path)
