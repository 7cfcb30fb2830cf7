"""Configuration: nothing that a user writes is silently ignored."""

import os
import socket
from pathlib import Path

import pytest

from hjepa_shards.config import LocalPath, Location, Strict, load_yaml, parse
from hjepa_shards.errors import InputError


class Inner(Strict):
    weight: float = 1
    window: int = 16


class Outer(Strict):
    size: int
    inner: tuple[Inner, ...] = ()
    either: Inner | None = None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"size": 1, "inner": [{}, {"wieght": 2}]}, "x.yaml: unknown key `inner.1.wieght`; did you mean `weight`?"),
        ({"size": 1, "either": {"windw": 2}}, "x.yaml: unknown key `either.windw`; did you mean `window`?"),
        ({"size": 1, "zzz": 2}, "x.yaml: unknown key `zzz`; known here: either, inner, size"),
        ({}, "x.yaml: size: Field required"),
        ({"size": "big"}, "'big' found"),
        ({"size": 1, "inner": [{"weight": float("nan")}]}, "inner.0.weight"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_known_key(content: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Outer, content, "x.yaml")
    assert said in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(InputError, match=r"`a`.*`b`.*size|size.*`a`.*`b`"):
        parse(Outer, {"a": 1, "b": 2}, "x.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a", "list found"), ("", "NoneType found"), ("a: [", "not YAML"), ("a: 1\n\x00", "not YAML")],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            load_yaml(path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "large", "utf-16", "nul"])
def test_what_is_no_plain_text_file_is_refused_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "large":
        path.write_bytes(b"#" * 300_000)
    elif kind == "utf-16":
        path.write_bytes("a: 1".encode("utf-16"))
    else:
        path = tmp_path / "a\0b"
    with pytest.raises(InputError) as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_home_and_variables_in_locations_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Places(Strict):
        root: Location
        folder: LocalPath

    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/fast")
    places = parse(Places, {"root": "~/shards", "folder": "$SCRATCH/runs"}, "x.yaml")
    assert (places.root, places.folder) == ("/home/me/shards", Path("/fast/runs"))
    assert parse(Places, {"root": "s3://b/~x", "folder": "${HOME}"}, "x.yaml").root == "s3://b/~x"


def test_a_long_wrong_value_is_shown_in_part() -> None:
    with pytest.raises(InputError) as caught:
        parse(Outer, {"size": "x" * 10_000}, "x.yaml")
    assert len(str(caught.value)) < 300
