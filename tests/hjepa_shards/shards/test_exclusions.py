"""Lists of samples to exclude."""

import json
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.shards.exclusions import read_exclusions

LINE = {"source": "a", "split": "train", "key": "k", "reason": "twice"}


def test_only_the_lines_of_the_split_count_and_the_first_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    lines = [LINE, LINE | {"split": "test", "key": "x"}, LINE | {"reason": "again"}, LINE | {"source": "b"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_exclusions(path, "a", "train") == {"k": "twice"}
    assert read_exclusions(path, "a", "val") == {}


@pytest.mark.parametrize("line", ["{", "[1]", '{"source": "a"}', json.dumps(LINE | {"key": 3}), "[" * 100_000])
def test_a_line_of_another_kind_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}")
    with pytest.raises(InputError, match="line 2: a JSON object with the texts source, split, key, reason"):
        read_exclusions(path, "a", "train")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "bytes"):
        with pytest.raises(InputError, match=str(path)):
            read_exclusions(path, "a", "train")
