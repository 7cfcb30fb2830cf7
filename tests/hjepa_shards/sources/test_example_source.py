"""The source that docs/contributing.md writes as an example is one that can be built."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import InputError
from hjepa_shards.loader.sample_reader import SampleReader
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.sources.registry import SOURCES
from hjepa_shards.verifying.verify_split import verify

PAGE = Path(__file__).resolve().parents[3] / "docs" / "contributing.md"


def test_mnist_as_the_docs_have_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Adding a source")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    module: dict[str, Any] = {"__name__": "mnist"}
    exec(code, module)
    monkeypatch.setitem(SOURCES, "mnist", module["MNIST"])

    with pytest.raises(InputError, match="train-images-idx3-ubyte, train-labels-idx1-ubyte expected"):
        build("mnist", raw=tmp_path, out=tmp_path / "out")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 10
    for name in ("train", "t10k"):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(bytes(16) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(bytes(8) + labels.tobytes())
    build("mnist", raw=tmp_path, out=tmp_path / "out", options=BuildOptions(samples_per_shard=8))
    for split in ("train", "test"):
        folder = tmp_path / "out" / "mnist" / split
        manifest = load_manifest(folder)
        assert verify(folder) == []
        reader = SampleReader(LocalStore(folder, manifest), manifest)
        found = [reader.locate(i) for i in range(30)]
        assert sorted(one.label for one in found) == sorted(labels.tolist())
        seen = {reader.pixels(one)[..., 0].tobytes() for one in found}
        assert seen == {image.tobytes() for image in pixels}
        reader.close()
