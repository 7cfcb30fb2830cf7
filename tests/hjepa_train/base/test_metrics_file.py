import contextlib
import json
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError
from hjepa_train.base.metrics_file import append_metrics, read_metrics, truncate_metrics


def journal_of(path: Path, steps: range) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"step": step, "loss": 1 / (step + 1), "alarms": [], "sources": {"a": {"count": step}}} for step in steps
    ]
    for row in rows:
        append_metrics(path, row)
    return rows


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert journal_of(path, range(50)) == read_metrics(path)


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "loss": float("nan"), "more": {"a": {"loss": [float("-inf"), 1.0]}}})
    assert read_metrics(path) == [{"step": 1, "loss": None, "more": {"a": {"loss": [None, 1.0]}}}]


def test_a_last_line_cut_at_any_byte_is_dropped_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = journal_of(path, range(3))
    whole = path.read_bytes()
    before = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for num_bytes in range(before, len(whole)):
        path.write_bytes(whole[:num_bytes])
        complete = num_bytes == len(whole) - 1
        assert read_metrics(path) == (rows if complete else rows[:2])


def test_a_broken_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2: a JSON object expected"):
        read_metrics(path)
    path.write_text('{"loss": 1}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:1: .*`step`"):
        read_metrics(path)


def test_a_missing_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("tail", ["", '{"step": 11, "lo'])
def test_a_journal_is_cut_back_to_a_step_to_the_byte(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    journal_of(path, range(0, 10, 2))
    whole = path.read_bytes()
    path.write_bytes(whole + tail.encode())
    assert truncate_metrics(path, 5) == 2 + bool(tail)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    journal_of(path, range(6, 10, 2))
    assert path.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_journal_that_is_not_there_needs_no_cutting(tmp_path: Path) -> None:
    assert truncate_metrics(tmp_path / "metrics.jsonl", 5) == 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_clear_error(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "full").write_bytes(bytes(4 << 20))
    with pytest.raises(InputError, match="No space left"):
        append_metrics(small_disk / "metrics.jsonl", {"step": 1})


def test_a_journal_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """A third party's run folder: a line of JSON would go into any file of the user's."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to("mine")
    with pytest.raises(InputError, match="cannot be written"):
        append_metrics(tmp_path / "metrics.jsonl", {"step": 1})
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 9223372036854775808}',
        b'{"step": true}',
        b'{"step": 1, "position": 1e30}',
        b'{"step": 1, "loss": "0.5"}',
        b'{"step": 1, "rho_l0": 1e999}',
        b'{"step": 1, "loss": 9' + b"9" * 30 + b"}",
        b'{"step": 1, "lr": NaN}',
        b'{"step": 1, "alarms": [{}]}',
        b'{"step": 1, "sources": {"a": 3}}',
        b'{"step": 1, "sources": {"a": {"share": []}}}',
        b"[" * 100_000,
    ],
)
def test_an_edited_line_is_refused_by_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:1: .* expected"):
        read_metrics(path)


def test_a_line_is_one_json_object(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "note": "two\nlines \u2028 ρ"})
    assert json.loads(path.read_bytes().split(b"\n")[0]) == read_metrics(path)[0]
    assert path.read_bytes().count(b"\n") == 1
