"""A split as a list."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import ChecksumMismatch, InputError, ManifestError
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.loader.sample_reader import SampleReader
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


def test_labels_are_those_of_the_samples_and_read_no_image(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = SplitView(shards / "digits" / "test")
    expected = [sample.label for sample in view]
    monkeypatch.setattr(SampleReader, "pixels", pytest.fail)
    monkeypatch.setattr("hjepa_shards.loader.split_view._LABELS_AT_ONCE", 64)
    assert view.labels().tolist() == expected
    assert view.labels(70).tolist() == expected[:70]
    assert view.labels(10_000).tolist() == expected
    assert set(SplitView(shards / "photos" / "train").labels(5).tolist()) == {-1}


@pytest.mark.parametrize("world", [1, 3])
def test_some_samples_of_a_split_are_read_in_their_order_by_any_number_of_ranks(shards: Path, world: int) -> None:
    folder, chosen = shards / "digits" / "test", [150, 3, 77, 3, 199, 0, 12]
    [whole] = read_split(folder, image_size=8, batch=200)
    found = [list(read_split(folder, image_size=8, batch=2, samples=chosen, rank=r, world=world)) for r in range(world)]
    assert len({len(batches) for batches in found}) == 1, "as many on all ranks"
    read = [batch for batches in found for batch in batches]
    assert np.concatenate([batch.samples[batch.valid] for batch in read]).tolist() == chosen
    assert np.array_equal(np.concatenate([batch.images[batch.valid] for batch in read]), whole.images[chosen])
    with pytest.raises(InputError, match="samples: numbers from 0 to 199 expected, 3 to 200 found"):
        next(read_split(folder, image_size=8, batch=2, samples=[3, 200]))


def test_more_ranks_than_samples_read_each_once(shards: Path) -> None:
    ranks = [
        list(read_split(shards / "digits" / "test", image_size=8, batch=4, samples=[5], rank=r, world=3))
        for r in range(3)
    ]
    assert [batch.valid.tolist() for [batch] in ranks] == [[False], [False], [True]]
