"""webdataset and Hugging Face `datasets` read the shards unchanged."""

import tarfile
from pathlib import Path

import pytest

from hjepa_shards.manifest import load_manifest
from hjepa_shards.verify import keys_of

Sample = tuple[str, bytes, int]


@pytest.fixture
def expected(shards: Path) -> list[Sample]:
    """Key, image bytes and label of every sample, by the standard library."""
    found = []
    for path in sorted((shards / "digits" / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            data = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        keys = [name.removesuffix(".png") for name in data if name.endswith(".png")]
        found += [(key, data[f"{key}.png"], int(data[f"{key}.cls"])) for key in keys]
    return found


def test_manifest_and_sidecars_name_the_same_samples(shards: Path, expected: list[Sample]) -> None:
    folder = shards / "digits" / "train"
    manifest = load_manifest(folder)
    keys = [key for shard in range(manifest.num_shards) for key in keys_of(folder, manifest, shard)]
    assert keys == [key for key, _, _ in expected]
    assert len(keys) == 200


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_the_same_keys_bytes_and_labels(shards: Path, expected: list[Sample]) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted((shards / "digits" / "train").glob("*.tar"))]
    found = [
        (sample["__key__"], sample["png"], int(sample["cls"]))
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    assert found == expected


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_reads_the_same_keys_bytes_and_labels(
    shards: Path, expected: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    urls = [str(path) for path in sorted((shards / "digits" / "train").glob("*.tar"))]
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": urls}, split="train", cache_dir=str(tmp_path / "cache")
    )
    loaded = loaded.cast_column("png", datasets.Image(decode=False))
    found = [(row["__key__"], row["png"]["bytes"], int(row["cls"])) for row in loaded]
    assert found == expected
