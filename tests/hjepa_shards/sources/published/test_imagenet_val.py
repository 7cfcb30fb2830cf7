"""Which synset a validation file is of: devkit, Kaggle's csv and the shipped list, and what is wrong with each."""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.formats.image_files import FolderFiles
from hjepa_shards.sources.published.imagenet import synset_names
from hjepa_shards.sources.published.imagenet_val import FlatVal, val_synsets
from tests.hjepa_shards.sources.layouts import put

KIT = "ILSVRC2012_devkit_t12"


def devkit(synsets: Sequence[str], of_files: Sequence[str]) -> dict[str, bytes]:
    """The devkit's two files. As in the real one, ids run in an order of their own and inner nodes follow."""
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    by_id = list(reversed(synsets))
    table = np.zeros(len(by_id) + 1, dtype=fields)
    for row, synset in enumerate([*by_id, "n00001740"]):
        table[row] = (row + 1, synset, "some, words", "a gloss", 0 if row < len(by_id) else 3)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table.reshape(-1, 1)})
    ground_truth = "".join(f"{by_id.index(synset) + 1}\n" for synset in of_files)
    return {
        f"{KIT}/data/meta.mat": buffer.getvalue(),
        f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt": ground_truth.encode(),
    }


def found(*folders: Path) -> dict[int, str]:
    return dict(val_synsets(folders, tuple(synset_names())))


def test_the_shipped_list_is_the_published_one(tmp_path: Path, real_data: Path) -> None:
    lines = (real_data / "imagenet" / "val_synsets.txt").read_text().split()
    assert found(tmp_path) == dict(enumerate(lines[1::2], start=1))
    assert [int(name[15:23]) for name in lines[::2]] == list(range(1, 50_001))


def test_the_shipped_list_has_fifty_files_of_each_synset(tmp_path: Path) -> None:
    synsets = list(found(tmp_path).values())
    assert len(synsets) == 50_000
    assert all(synsets.count(synset) == 50 for synset in list(synset_names())[::50])


def test_the_devkit_goes_before_kaggles_csv_and_that_before_the_shipped_list(tmp_path: Path) -> None:
    put(
        tmp_path / "a", {"LOC_val_solution.csv": b"ImageId,PredictionString\nILSVRC2012_val_00000002,n01443537 1 2 3 4"}
    )
    assert found(tmp_path / "a") == {2: "n01443537"}
    put(tmp_path / "b", devkit(("n01440764", "n04380533"), ("n04380533", "n01440764", "n04380533")))
    assert found(tmp_path / "a", tmp_path / "b") == {1: "n04380533", 2: "n01440764", 3: "n04380533"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"{KIT}/readme.txt": b""}, r"ground_truth.txt: cannot be read: No such file.*the list that comes with this"),
        (
            {f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt": b"1\n1862\n"},
            r"ground_truth.txt, line 2: a synset's id expected, b'1862' found; fetch it again, or remove it",
        ),
        ({f"{KIT}/data/meta.mat": b"no MATLAB"}, r"data/meta.mat: a table of synsets expected \(no MATLAB 5 file"),
        ({f"{KIT}.tar.gz": b"no gzip"}, r"t12.tar.gz: the devkit with data/ILSVRC2012_validation.* expected \(.*gzip"),
        (
            {"LOC_val_solution.csv": b"ImageId,PredictionString\nILSVRC2012_test_00000002,n01443537\n"},
            r"LOC_val_solution.csv, line 2: a file and its synset, as ILSVRC2012_val_00000001,n01751748, expected, '",
        ),
    ],
)
def test_a_damaged_list_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    kit = devkit(("n01440764",), ("n01440764",))
    put(tmp_path, (kit if any("/data/" in name for name in files) else {}) | files)
    with pytest.raises((InputError, ShardError), match=message):
        found(tmp_path)


def test_files_without_a_synset_are_named(tmp_path: Path) -> None:
    files = FlatVal(FolderFiles(put(tmp_path, {"ILSVRC2012_val_00000003.JPEG": b""})), {1: "n01440764"})
    with pytest.raises(InputError, match=r"1 files have a synset, ILSVRC2012_val_00000003.JPEG has none"):
        list(files.names())
    files = FlatVal(FolderFiles(put(tmp_path, {"00003.jpg": b""})), {1: "n01440764"})
    with pytest.raises(InputError, match=r"files such as ILSVRC2012_val_00000001.JPEG expected, '00003.jpg' found"):
        list(files.names())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_devkit_gives_our_own_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kit = devkit(("n01440764", "n04380533"), ("n04380533", "n01440764"))
    name = data.draw(st.sampled_from(sorted(kit)))
    flipped = bytearray(kit[name])
    for _ in range(data.draw(st.integers(1, 3))):
        flipped[data.draw(st.integers(0, len(flipped) - 1))] = data.draw(st.integers(0, 255))
    folder = put(tmp_path_factory.getbasetemp() / "flipped", kit | {name: bytes(flipped)})
    with contextlib.suppress(ShardError):
        assert all(re.fullmatch(r"n\d{8}", synset) for synset in found(folder).values())
