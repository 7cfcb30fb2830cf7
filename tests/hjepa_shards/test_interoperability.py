"""webdataset, Hugging Face `datasets`, DALI and Energon read the shards of every source unchanged.

DALI and Energon want environments of their own: HJEPA_DALI_PYTHON and HJEPA_ENERGON_PYTHON name their Pythons.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.sources.registry import SOURCES
from tests.hjepa_shards.raw_sets import RAW_SETS, build_every_source

PEERS = Path(__file__).parent / "peers"
Sample = dict[str, bytes]
"""The members of a sample by extension, its key under __key__."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_every_source(tmp_path_factory.mktemp("every"))


def samples_of(folder: Path) -> list[Sample]:
    """By the standard library."""
    found: dict[str, Sample] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                sample = found.setdefault(key, {"__key__": key.encode()})
                sample[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return list(found.values())


def test_every_source_has_a_raw_set_here() -> None:
    assert list(RAW_SETS) == list(SOURCES)


@pytest.mark.parametrize("source", RAW_SETS)
def test_manifest_and_sidecars_name_the_same_samples(built: dict[str, Path], source: str) -> None:
    folder = built[source]
    manifest = load_manifest(folder)
    shards = [folder / manifest.shard_name(shard) for shard in range(manifest.num_shards)]
    keys = [key for shard in shards for key in keys_of(shard, Sidecar(Path(f"{shard}.index")).checked_rows())]
    samples = samples_of(folder)
    assert keys == [sample["__key__"].decode() for sample in samples]
    assert len(keys) == manifest.num_samples >= 3
    assert all(set(sample) == {"__key__", *manifest.members} for sample in samples)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", RAW_SETS)
def test_webdataset_reads_the_same_members(built: dict[str, Path], source: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(built[source].glob("*.tar"))]
    expected = samples_of(built[source])
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [
        {name: sample[name].encode() if name == "__key__" else sample[name] for name in whole}
        for sample, whole in zip(found, expected, strict=True)
    ] == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", RAW_SETS)
def test_hugging_face_datasets_reads_the_same_members(
    built: dict[str, Path], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    urls = [str(path) for path in sorted(built[source].glob("*.tar"))]
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": urls}, split="train", cache_dir=str(tmp_path / "cache")
    )
    image = load_manifest(built[source]).members[0]
    loaded = loaded.cast_column(image, datasets.Image(decode=False))
    for row, expected in zip(loaded, samples_of(built[source]), strict=True):
        assert row["__key__"] == expected["__key__"].decode()
        assert row[image]["bytes"] == expected[image]
        if "cls" in expected:
            assert int(row["cls"]) == int(expected["cls"])
        if "txt" in expected:
            assert row["txt"] == expected["txt"].decode()
            assert row["json"]["captions"] == json.loads(expected["json"])["captions"]


def python_with(variable: str) -> str:
    found = os.environ.get(variable)
    if not found:
        pytest.skip(f"{variable} is not set: the Python of an environment that has it")
    return found


@pytest.mark.parametrize("source", RAW_SETS)
def test_dali_reads_the_same_images(built: dict[str, Path], source: str) -> None:
    python = python_with("HJEPA_DALI_PYTHON")
    image, second = [*load_manifest(built[source]).members, "-"][:2]
    command = [python, PEERS / "read_dali.py", built[source], image, second]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    assert lines == [
        f"{hashlib.sha256(sample[image]).hexdigest()} {sample[second].hex() if second != '-' else '-'}"
        for sample in samples_of(built[source])
    ]


@pytest.mark.parametrize("source", RAW_SETS)
def test_energon_prepares_and_reads_the_same_samples(built: dict[str, Path], source: str, tmp_path: Path) -> None:
    python = python_with("HJEPA_ENERGON_PYTHON")
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in built[source].glob("*.tar"):
        shutil.copy(path, folder)
    image, *rest = load_manifest(built[source]).members
    fields = json.dumps({"image": image, "caption": next(iter(rest), "__key__")})
    options = ["--non-interactive", "--no-progress", "--num-workers", "1", "--split-parts", r"train:.*\.tar"]
    kind = ["--sample-type", "CaptioningSample", "--field-map", fields]
    prepare = [Path(python).with_name("energon"), "prepare", folder, *options, *kind]
    subprocess.run(prepare, check=True, capture_output=True)
    command = [python, PEERS / "read_energon.py", folder]
    keys = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert sorted(keys) == sorted(sample["__key__"].decode() for sample in samples_of(built[source]))
