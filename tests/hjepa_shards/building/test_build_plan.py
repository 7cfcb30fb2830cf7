"""The plan of a build: fixed once, compared by every later process."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.build_plan import PLAN, read_plan, shuffled, slice_of, take_list
from hjepa_shards.building.shard_writer import Members
from hjepa_shards.errors import BuildMismatch
from hjepa_shards.images.encode import EncodeSettings
from hjepa_shards.sources.registry import open_split
from hjepa_shards.storage.build_output import FolderTarget
from tests.hjepa_shards.building.test_build import files_of

OPTIONS = BuildOptions(samples_per_shard=48, limit=200)


def test_the_slices_hold_every_sample_once(shards: Path) -> None:
    plan = read_plan(FolderTarget(shards / "digits" / "train"))
    assert plan is not None
    assert (plan.num_shards, plan.num_samples) == (5, 200)
    listed = take_list(open_split("digits", None, "train")).thinned(200)
    order = shuffled(plan, listed.listing)
    slices = [slice_of(plan, order, shard) for shard in range(5)]
    assert [len(part) for part in slices] == [48, 48, 48, 48, 8]
    keys = [key for part in slices for key, _ in part.keyed()]
    assert sorted(keys) == [key for key, _ in listed.listing.keyed()]
    assert keys != sorted(keys)


def test_a_plan_tells_all_that_a_manifest_needs_but_the_records(shards: Path) -> None:
    plan = read_plan(FolderTarget(shards / "digits" / "train"))
    assert plan is not None
    assert list(plan.class_names) == list("0123456789")
    assert plan.encode_settings() == EncodeSettings(pixels="png")
    assert plan.members == Members(image="png", labels=True, captions=False)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"samples_per_shard": 50}, "samples_per_shard: 48 before, 50 now"),
        ({"limit": 100}, "num_samples: 200 before, 100 now"),
        ({"seed": 1}, "seed: 0 before, 1 now"),
        ({"settings": EncodeSettings(pixels="jpeg")}, "settings.pixels: png before, jpeg now"),
        ({"settings": EncodeSettings(pixels="png", encoder="pillow")}, "settings.encoder: turbo before, pillow now"),
    ],
)
def test_other_settings_are_refused_by_name(shards: Path, changed: dict[str, object], named: str) -> None:
    before = files_of(shards)
    with pytest.raises(BuildMismatch, match=named):
        build("digits", raw=None, out=shards, splits=("train",), options=replace(OPTIONS, **changed))  # type: ignore[arg-type]
    assert files_of(shards) == before


def test_other_exclusions_are_refused_by_name(shards: Path, tmp_path: Path) -> None:
    line = {"source": "digits", "split": "train", "key": "0001", "reason": "twice"}
    (tmp_path / "list").write_text(json.dumps(line))
    options = replace(OPTIONS, exclude=tmp_path / "list")
    with pytest.raises(BuildMismatch, match="excluded: 0 samples before, 1 samples now"):
        build("digits", raw=None, out=shards, splits=("train",), options=options)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": "digits"}'])
def test_a_plan_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    target = FolderTarget(tmp_path)
    target.prepare()
    target.write(PLAN, text.encode())
    with pytest.raises(BuildMismatch, match=r"plan.json: not a plan.*remove"):
        read_plan(target)


OTHER_LIBRARIES = (
    "import sys; import numpy as np; from hjepa_shards.images import encode\n"
    "encode._canary_images = lambda: [np.zeros((4, 4, 3), np.uint8)]\n"
    "from hjepa_shards.cli import main; sys.argv[0] = 'hjepa-shards'; main()\n"
)
"""The command line on a machine whose encoder makes other bytes of the three test images."""


def with_other_libraries(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OTHER_LIBRARIES, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        "build digits --out {root} --split train --limit 200 --samples-per-shard 48",
        "build digits --out {root} --split train --limit 200 --samples-per-shard 48 --part 1/2",
        "repair {root}/digits/train",
    ],
)
def test_another_encoder_is_refused_with_both_identities(shards: Path, tmp_path: Path, arguments: str) -> None:
    (manifest,) = build("digits", raw=None, out=tmp_path, splits=("train",), options=OPTIONS)
    assert manifest.encoder is not None
    (tmp_path / "digits" / "train" / "digits-train-000001.tar").unlink()
    before = files_of(tmp_path)
    refused = with_other_libraries(*arguments.format(root=tmp_path).split())
    assert refused.returncode == 2, refused.stderr
    assert f"encoder.canary: {manifest.encoder['canary']} before, " in refused.stderr
    assert refused.stderr.count("\n") == 1
    after = {name: data for name, data in files_of(tmp_path).items() if ".part-" not in name}
    assert after == before


@pytest.mark.parametrize(
    "members",
    [{"labels": True, "captionsimage": "png"}, {"image": "../x", "labels": True, "captions": False}, [], None],
)
def test_members_that_no_build_has_written_are_refused(shards: Path, tmp_path: Path, members: object) -> None:
    path = tmp_path / PLAN
    path.parent.mkdir()
    content = json.loads((shards / "digits" / "train" / PLAN).read_text())
    path.write_text(json.dumps(content | {"members": members}))
    with pytest.raises(BuildMismatch, match=r"not a plan that this hjepa-shards wrote \(members"):
        read_plan(FolderTarget(tmp_path))
