"""Parts that never meet, and a manifest from their records alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, Part, build, build_part
from hjepa_shards.building.merge_parts import merge, num_decoded, unmerged_below
from hjepa_shards.errors import BuildMismatch, InputError
from hjepa_shards.images import encode
from hjepa_shards.images.rgb_pixels import Shown, shown
from hjepa_shards.storage.build_output import JOURNAL
from tests.conftest import Command
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.images.test_image_formats import saved, scene

OPTIONS = BuildOptions(samples_per_shard=48, limit=200)


def one_part(out: Path, number: int, of: int, options: BuildOptions = OPTIONS) -> None:
    build_part("digits", raw=None, out=out, part=Part(number=number, of=of), splits=("train",), options=options)


def split_of(shards: Path) -> dict[str, bytes]:
    return files_of(shards / "digits" / "train")


@pytest.mark.parametrize("of", [1, 3, 7])
def test_parts_merged_are_the_plain_build(shards: Path, tmp_path: Path, of: int) -> None:
    folder = tmp_path / "digits" / "train"
    for number in range(of, 0, -1):
        one_part(tmp_path, number, of)
        assert not (folder / "manifest.json").exists()
    assert merge(folder).num_samples == 200
    assert files_of(folder) == split_of(shards)
    assert merge(folder).num_samples == 200  # again: nothing changes
    assert files_of(folder) == split_of(shards)


def test_what_is_missing_is_named_by_shard_and_part(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "train"
    one_part(tmp_path, 1, 3)  # shards 0 and 3
    with pytest.raises(InputError, match=r"5 shards expected, 3 missing, of parts 2/3, 3/3: 1, 2, 4; run those parts"):
        merge(folder)
    one_part(tmp_path, 3, 3)  # shard 2
    with pytest.raises(InputError, match=r"2 missing, of part 2/3: 1, 4"):
        merge(folder)
    build("digits", raw=None, out=tmp_path, splits=("train",), options=OPTIONS)  # the same build without --part
    assert files_of(folder) == split_of(shards)


def test_parts_that_start_at_once_agree_on_one_plan(shards: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hjepa_shards.building.build import *\n"
        "options = BuildOptions(samples_per_shard=48, limit=200)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"build_part('digits', raw=None, out=Path({str(tmp_path)!r}), part=Part.parse(sys.argv[1]), "
        "splits=('train',), options=options)"
    )
    pipe = subprocess.PIPE
    parts = [
        subprocess.Popen([sys.executable, "-c", code, f"{number}/3"], stdin=pipe, stdout=pipe) for number in (1, 2, 3)
    ]
    for part in parts:
        assert part.stdout is not None
        assert part.stdout.readline() == b"ready\n"
    for part in parts:
        assert part.stdin is not None
        part.stdin.write(b"\n")
        part.stdin.flush()
    for part in parts:
        part.communicate()
        assert part.returncode == 0
    (where,) = unmerged_below(tmp_path)
    merge(where)
    assert files_of(tmp_path / "digits" / "train") == split_of(shards)


def test_a_part_of_another_build_is_refused_by_name(tmp_path: Path) -> None:
    one_part(tmp_path, 1, 2)
    before = files_of(tmp_path)
    with pytest.raises(BuildMismatch, match="num_samples: 200 before, 100 now"):
        one_part(tmp_path, 2, 2, BuildOptions(samples_per_shard=48, limit=100))
    marks = {f"digits/train/{JOURNAL}/.part-2-of-2": b""}
    assert files_of(tmp_path) == before | marks


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/2/3", "-1/2", ""])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--part: i/n"):
        Part.parse(text)


def test_a_folder_without_a_build_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no .journal/plan.json here or below"):
        unmerged_below(tmp_path)
    with pytest.raises(InputError, match="no build here"):
        merge(tmp_path)


def test_a_record_that_was_damaged_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "train"
    one_part(tmp_path, 1, 1)
    record = folder / JOURNAL / "digits-train-000002.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:-5])
    with pytest.raises(BuildMismatch, match=r"digits-train-000002.json.*remove it and run the same build"):
        merge(folder)
    record.unlink()
    build("digits", raw=None, out=tmp_path, splits=("train",), options=OPTIONS)
    assert record.read_bytes() == whole
    assert json.loads(whole)["samples"] == 48


def test_the_summary_says_how_many_images_a_build_has_decoded(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(20):
        (raw / f"{i:02}.jpg").write_bytes(saved(scene(), "JPEG", quality=60 + i))
    for i in range(2):
        (raw / f"doubtful{i}.png").write_bytes(saved(scene(), "PNG", compress_level=i)[:-4])
    (raw / "none.jpg").write_bytes(b"none")
    decoded = set()

    def counted(data: bytes, image: Image.Image) -> Shown:
        decoded.add(data)
        return shown(data, image)

    monkeypatch.setattr(encode, "shown", counted)
    out = tmp_path / "kept"
    code, said, _ = command("build", "folder", "--raw", raw, "--out", out, "--keep", "--workers", 1)
    assert code == 3
    decoded &= {path.read_bytes() for path in raw.iterdir()}  # without the encoder's own three
    assert 16 <= len(decoded) <= 18  # the first of a shard, for its statistics, and what is in doubt
    assert num_decoded(out / "folder" / "train") == len(decoded)
    assert f"folder-train: {len(decoded)} of 22 images were decoded, the others kept as they are" in said
    assert "`hjepa-shards verify --deep" in said
    said = command("build", "folder", "--raw", raw, "--out", tmp_path / "png", "--pixels", "png", "--workers", 1)[1]
    assert "folder-train: all 22 images were decoded" in said
