"""Which tars a folder or a pattern means."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hjepa_shards.errors import InputError
from hjepa_shards.sources.formats import tar_patterns
from hjepa_shards.sources.formats.tar_patterns import expand, is_pattern, tars_in


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{8..11}.tar", ["x-10.tar", "x-11.tar", "x-8.tar", "x-9.tar"]),
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]),
        ("x-{0..10..5}.tar", ["x-0.tar", "x-10.tar", "x-5.tar"]),
        ("x-{00..10..5}.tar", ["x-00.tar", "x-05.tar", "x-10.tar"]),
        ("x-{a..c}.tar", ["x-a.tar", "x-b.tar", "x-c.tar"]),
        ("x{,-b}.tar", ["x-b.tar", "x.tar"]),
        ("{b,a}/{1..2}.tar", ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]),
        ("{a,b{1..2}}.tar", ["a.tar", "b1.tar", "b2.tar"]),
        ("b.tar::a-{0..1}.tar::b.tar", ["a-0.tar", "a-1.tar", "b.tar"]),
        (
            "http://[::1]:80/{a,b}.tar::http://[fe80::2]/c.tar",
            ["http://[::1]:80/a.tar", "http://[::1]:80/b.tar", "http://[fe80::2]/c.tar"],
        ),
        ("s3://bucket/x-{0..1}.tar?v=1", ["s3://bucket/x-0.tar?v=1", "s3://bucket/x-1.tar?v=1"]),
    ],
)
def test_braces_are_written_out_as_a_shell_would(pattern: str, expected: list[str]) -> None:
    assert expand(pattern) == expected


def test_a_star_finds_files(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert expand(f"file://{tmp_path}/*.tar") == [f"file://{tmp_path}/a.tar", f"file://{tmp_path}/b.tar"]
    with pytest.raises(InputError, match="none found; check the pattern"):
        expand(f"{tmp_path}/*.tgz")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{000..002.tar", "a closing brace expected"),
        ("x-{9..1}.tar", "a range from less to more"),
        ("x-{0..1000}.tar", "at most 1,000 tars"),
        ("x-{0..1000..500}.tar", "at most 1,000 tars"),
        (f"x-{{0..{'9' * 5000}}}.tar", "at most 1,000 tars"),
        ("x-{0..c}.tar", r"\{0..c\}: a range as \{000..012\} or \{a..c\}, or a list as \{a,b\}, expected"),
        ("x-{0..4..x}.tar", "a range as"),
        ("x-{train}.tar", "a range as"),
        ("{0..99}{0..99}", "at most 1,000 tars"),
        ("{a,b}" * 40, "at most 1,000 tars"),
    ],
)
def test_wrong_braces_are_refused(monkeypatch: pytest.MonkeyPatch, pattern: str, message: str) -> None:
    monkeypatch.setattr(tar_patterns, "MAX_TARS", 1000)
    with pytest.raises(InputError, match=message):
        expand(pattern)


@given(st.text(alphabet="{},.012ab:", max_size=30))
def test_any_pattern_gives_names_or_our_error(pattern: str) -> None:
    try:
        assert expand(pattern)
    except InputError:
        return


def test_folders_are_told_from_patterns(tmp_path: Path) -> None:
    for name in ("b.tar.gz", "a.tar", "c.tzst", ".hidden.tar", "a.tar.index", "00000.parquet"):
        (tmp_path / name).touch()
    assert tars_in(tmp_path) == ["a.tar", "b.tar.gz", "c.tzst"]
    assert not is_pattern(str(tmp_path))
    assert all(map(is_pattern, ("a.tar", "x/{0..1}.tar", "*.tgz", "https://x/y", "x-{a,b}")))
    with pytest.raises(InputError, match="a folder of tars expected, No such file"):
        tars_in(tmp_path / "nowhere")
