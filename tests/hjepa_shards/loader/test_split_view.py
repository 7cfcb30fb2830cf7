"""A split as a list."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import ChecksumMismatch, ManifestError
from hjepa_shards.loader.split_view import SplitView
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.sources.published.test_coco import CAPTIONS, annotations, raw_of
from tests.hjepa_shards.verifying.test_verify_split import flip


def test_samples_are_those_of_the_source(shards: Path) -> None:
    view = SplitView(str(shards / "digits" / "test"))
    raw = open_split("digits", None, "test")
    assert (len(view), view.class_names) == (200, list("0123456789"))
    originals = {raw.read(sample).tobytes() for sample in raw.samples}  # type: ignore[union-attr]
    assert all(sample.image[..., 0].tobytes() in originals for sample in view)
    assert [sample.label for sample in view[3:6]] == [view[3].label, view[4].label, view[5].label]
    assert np.array_equal(view[-1].image, view[len(view) - 1].image)
    assert view[0].captions == ()
    with pytest.raises(IndexError):
        view[200]
    view.close()
    assert view[0].image.shape == (8, 8, 3)


def test_it_travels_to_workers(shards: Path) -> None:
    view = SplitView(shards / "digits" / "test")
    assert np.array_equal(pickle.loads(pickle.dumps(view))[7].image, view[7].image)


class Turned:
    """A transform with nothing in it, as an empty nn.Sequential is."""

    def __len__(self) -> int:
        return 0

    def __call__(self, image: Image.Image) -> Any:
        assert image.mode == "RGB"
        return image.transpose(Image.Transpose.ROTATE_180)


def test_a_transform_takes_each_image_as_torchvisions_datasets_give_it(shards: Path) -> None:
    folder = shards / "photos" / "train"
    plain, view = SplitView(folder), SplitView(folder, transform=Turned())
    assert isinstance(plain[0].image, np.ndarray)
    for one, other in ((plain[5], view[5]), (plain[-1], view[-3:][2])):
        assert np.array_equal(one.image[::-1, ::-1], np.asarray(other.image))
        assert (one.label, one.captions) == (other.label, other.captions)


def test_a_transform_travels_to_workers(shards: Path) -> None:
    view = pickle.loads(pickle.dumps(SplitView(shards / "photos" / "train", Turned())))
    assert isinstance(view.transform, Turned)
    assert isinstance(view[7].image, Image.Image)


def test_captions_come_along_and_a_flipped_bit_in_them_is_found(tmp_path: Path) -> None:
    raw = raw_of(tmp_path / "raw", annotations())
    build("coco", raw=raw, out=tmp_path, splits=("val",), options=BuildOptions(samples_per_shard=8))
    folder = tmp_path / "coco" / "val"
    view = SplitView(folder)
    texts = [tuple(text for _, text in sorted(captions)) for captions in CAPTIONS.values()]
    assert sorted(sample.captions for sample in view) == sorted(texts)
    shard = folder / load_manifest(folder).shard_name(0)
    row = Sidecar(shard.with_name(shard.name + ".index")).row(0)
    flip(shard, int(row.json_offset) + 15)
    with pytest.raises(ChecksumMismatch, match="crc32"):
        SplitView(folder)[0]
    assert len(SplitView(folder)[1:]) == 2


def test_a_place_without_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="a built split expected"):
        SplitView(tmp_path)
