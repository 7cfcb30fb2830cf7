"""A third party's manifest with a valid checksum: each field that could lead somewhere is refused, on one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hjepa_shards.errors import ManifestError
from hjepa_shards.shards import manifest
from hjepa_shards.shards.manifest import FILE_NAME, load_manifest, manifest_bytes

Change = Callable[[dict[str, Any]], object]


def sealed(body: bytes) -> bytes:
    return body + (manifest._CHECKSUM_LINE % manifest._checksum(body)).encode()


def edited(folder: Path, change: Change) -> None:
    """The manifest there, changed, with a checksum that is right."""
    content = json.loads((folder / FILE_NAME).read_bytes())
    del content["checksum"]
    change(content)
    (folder / FILE_NAME).write_bytes(sealed(json.dumps(content, indent=1).removesuffix("\n}").encode()))


def in_shards(column: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["shards"][column] = [value] + content["shards"][column][1:]

    return change


CHANGES: dict[str, Change] = {
    "a digest that is a path": in_shards("sha256", "/home/me/thesis.tex"),
    "a digest in upper case": in_shards("index_sha256", "A" * 64),
    "a digest and a line": in_shards("sha256", "a" * 64 + "\n"),
    "a short digest": in_shards("keys_digest", "a" * 31),
    "a name with a folder": lambda m: m["shards"].update(pattern="../x-%06d.tar"),
    "names that are the same": lambda m: m["shards"].update(pattern=None, names=["a.tar"] * m["num_shards"]),
    "a name with NUL": lambda m: m["shards"].update(pattern=None, names=["a\0.tar"] * m["num_shards"]),
    "a negative count": in_shards("samples", -1),
    "a count beyond all computers": in_shards("bytes", 2**60),
    "a count that is true": in_shards("samples", True),
    "other totals": lambda m: m.update(num_samples=m["num_samples"] + 1),
    "more samples than headers have room": lambda m: m.update(
        num_samples=10**12, shards={**m["shards"], "samples": [10**12] + [0] * (m["num_shards"] - 1)}
    ),
    "a source that is a path": lambda m: m.update(source="../../etc"),
    "a split with controls": lambda m: m.update(split="train\x1b[2J"),
    "a class that is a number": lambda m: m.update(class_names=[1, 2]),
    "a class of a megabyte": lambda m: m.update(class_names=["x" * 2**20]),
    "a member that is a path": lambda m: m.update(members=["../png"]),
    "an exclusion without a name": lambda m: m.update(exclusions=[{"reason": "r"}]),
    "a renamed key of one part": lambda m: m.update(renamed={"k": ["n"]}),
    "statistics of texts": lambda m: m["statistics"].update(width=["1", "2", "3"]),
    "statistics without end": lambda m: m["statistics"].update(channel_moments=[[1e400] * 3] * 3),
    "a seed that is a list": lambda m: m["settings"].update(seed=[]),
    "more exclusions than there are": lambda m: m["settings"].update(list_excluded=9),
    "raw data of a path": lambda m: m["provenance"].update(raw_source="../x"),
    "facts nested deeply": lambda m: m.update(encoder=json.loads('{"a":' * 50 + "1" + "}" * 50)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_lie_in_a_manifest_is_one_line(shards: Path, tmp_path: Path, change: Change) -> None:
    shutil.copy(shards / "digits" / "train" / FILE_NAME, tmp_path)
    edited(tmp_path, lambda content: None)
    assert manifest_bytes(load_manifest(tmp_path)) == (shards / "digits" / "train" / FILE_NAME).read_bytes()
    edited(tmp_path, change)
    with pytest.raises(ManifestError, match=r"manifest\.json: ") as refused:
        load_manifest(tmp_path)
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("value", [b"[" * 200_000, b"9" * 5000, b"-Infinity", b'"\xff"'])
def test_json_that_is_none_is_one_line(tmp_path: Path, value: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(sealed(b'{\n"format": ' + value))
    with pytest.raises(ManifestError, match="JSON expected"):
        load_manifest(tmp_path)


def test_a_manifest_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).symlink_to("/dev/zero")
    with pytest.raises(ManifestError, match="not a regular file"):
        load_manifest(tmp_path)
