"""Shards of one split follow one set of rules: another number is refused by name, finished splits are read as ever."""

import json
import shutil
from pathlib import Path

import pytest

from hjepa_shards import BuildOptions, SplitView, build, repair, verify
from hjepa_shards.building.build import Part, build_part
from hjepa_shards.building.build_plan import PLAN
from hjepa_shards.building.build_rules import RULES
from hjepa_shards.errors import BuildMismatch

OPTIONS = BuildOptions(samples_per_shard=30, limit=60)
REFUSED = f"rules {RULES} expected, begun by rules 1 of another version"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two shards, as rules 1 left them: their plan has no number."""
    build("digits", raw=None, out=tmp_path, splits=("test",), options=OPTIONS)
    folder = tmp_path / "digits/test"
    plan = json.loads((folder / PLAN).read_bytes())
    assert plan.pop("rules") == RULES
    (folder / PLAN).write_text(json.dumps(plan, sort_keys=True, indent=1))
    return folder


def test_a_finished_split_of_other_rules_is_read_and_built_no_more(split: Path, tmp_path: Path) -> None:
    before = (split / "manifest.json").read_bytes()
    assert len(SplitView(split)) == 60
    assert verify(split) == []
    build("digits", raw=None, out=tmp_path, splits=("test",), options=OPTIONS)
    assert (split / "manifest.json").read_bytes() == before


def test_a_build_that_other_rules_began_is_refused_by_name(split: Path, tmp_path: Path) -> None:
    (split / "manifest.json").unlink()
    (split / "digits-test-000001.tar").unlink()
    with pytest.raises(BuildMismatch, match=REFUSED):
        build("digits", raw=None, out=tmp_path, splits=("test",), options=OPTIONS)
    with pytest.raises(BuildMismatch, match=REFUSED):
        build_part("digits", raw=None, out=tmp_path, splits=("test",), options=OPTIONS, part=Part(number=2, of=2))
    assert not (split / "digits-test-000001.tar").exists()


def test_a_repair_by_other_rules_is_refused_by_name_and_one_without_a_journal_is_judged_by_its_bytes(
    split: Path,
) -> None:
    shard = split / "digits-test-000001.tar"
    right = shard.read_bytes()
    shard.write_bytes(right[:-1024])
    with pytest.raises(BuildMismatch, match=REFUSED):
        repair(split)
    shutil.rmtree(split / ".journal")
    assert shard.name in repair(split).repaired
    assert shard.read_bytes() == right
