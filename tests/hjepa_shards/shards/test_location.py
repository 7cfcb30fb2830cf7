"""Which splits lie at a place, and whether they have labels, our own and third-party ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.shards.location import is_labelled, manifest_at, splits_at_or_below
from hjepa_shards.shards.manifest import load_manifest, save_manifest
from tests.conftest import Command
from tests.hjepa_shards.reports.test_split_survey import foreign, picture
from tests.hjepa_shards.storage.bad_server import serving

LABELS = {"without names": [0, 1, 1], "one missing": [1, None, 0], "none": [None, None, None]}


def tars(folder: Path, labels: Sequence[int | None]) -> Path:
    """A third-party split, indexed: .cls where there is a label, class names nowhere."""
    members = {}
    for number, label in enumerate(labels):
        members[f"{number}.jpg"] = picture(8 + number, 9)
        if label is not None:
            members[f"{number}.cls"] = str(label).encode()
    return foreign(folder, members)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_labels_without_names_are_labels(tmp_path: Path, command: Command, labels: list[int | None]) -> None:
    expected = any(label is not None for label in labels)
    for split in ("train", "test"):
        folder = tars(tmp_path / "mine" / split, labels)
    manifest = load_manifest(folder)
    assert manifest.class_names == []
    assert is_labelled(folder, manifest) == is_labelled(f"file://{folder}", manifest) == expected
    _, out, _ = command("info", folder)
    assert ("│ unnamed │" in out, "classes: labels without names" in out) == (expected, expected)
    _, out, _ = command("report", folder, "--html", tmp_path / "page.html")
    assert ("2 classes, images of each: 1" in (tmp_path / "page.html").read_text()) == expected
    _, out, _ = command("mix", "--source", "mine=1", "--root", tmp_path, "--out", tmp_path / "mix.yaml")
    assert ("no source has labels" not in " ".join(out.split())) == expected
    assert ("\nevaluation: {source: mine," in (tmp_path / "mix.yaml").read_text()) == expected


def test_built_tars_keep_their_labels_and_verify_raw_counts_them(tmp_path: Path, command: Command) -> None:
    raw = tars(tmp_path / "raw", LABELS["one missing"])
    options = BuildOptions(samples_per_shard=4)
    [manifest] = build("webdataset", raw=raw, out=tmp_path, splits=("train",), options=options)
    assert is_labelled(tmp_path / "webdataset" / "train", manifest)
    _, out, _ = command("verify-raw", "webdataset", "--raw", raw)
    assert [cell.strip() for cell in out.partition("│ train")[2].split("│")[1:4]] == ["3", "-", "2"]


def test_an_index_that_cannot_be_read_is_no_label(tmp_path: Path) -> None:
    folder = tars(tmp_path / "mine", LABELS["one missing"])
    manifest = load_manifest(folder)
    (folder / "a.tar.index").write_bytes(b"short")
    assert not is_labelled(folder, manifest)
    (folder / "a.tar.index").unlink()
    assert not is_labelled(folder, manifest)


def test_splits_are_found_by_listing_and_else_by_their_usual_names(shards: Path) -> None:
    root = f"file://{shards}"
    listed = [f"{root}/{name}" for name in ("digits/test", "digits/train", "photos/train", "scattered/train")]
    assert splits_at_or_below(root) == splits_at_or_below(f"{root}/") == listed
    assert splits_at_or_below(listed[0]) == listed[:1]
    assert splits_at_or_below(f"{root}/nothing") == []
    with serving() as server:
        for split in ("train", "test"):
            path = shards / "digits" / split / "manifest.json"
            server.files[f"root/digits/{split}/manifest.json"] = path.read_bytes()
        found = splits_at_or_below(server.url("root/digits"))
        assert found == [server.url("root/digits/train"), server.url("root/digits/test")]
        assert [manifest_at(url).split for url in found] == ["train", "test"]
        assert splits_at_or_below(server.url("root")) == []


@pytest.mark.parametrize("moments", [[[0, 0, 0]] * 3, None], ids=["nothing measured", "no statistics"])
def test_a_split_without_measured_pixels_is_shown_without_them(
    command: Command, shards: Path, tmp_path: Path, moments: list[list[int]] | None
) -> None:
    folder = tmp_path / "digits" / "train"
    folder.mkdir(parents=True)
    manifest = load_manifest(shards / "digits" / "train")
    statistics = {**manifest.statistics, "channel_moments": moments} if moments else {}
    save_manifest(folder, replace(manifest, statistics=statistics))
    code, out, err = command("info", folder)
    assert (code, err) == (0, "")
    assert "classes: 0, 1, 2" in out
    assert "mean" not in out
    code, out, err = command("mix", "--source", "digits=1", "--root", tmp_path, "--out", tmp_path / "mix.yaml")
    assert (code, err) == (0, "")
    assert "ImageNet's, the usual choice" in (tmp_path / "mix.yaml").read_text()
