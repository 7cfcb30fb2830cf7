"""Whatever the bytes of a file that we read, only our own errors come out.

Each target is a real file of its format, a way to read it, and hypothesis's mutations of it. HJEPA_FUZZ_EXAMPLES says
how many mutations a target sees (40 unless set; 5,000 takes some minutes).
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa_shards.building.build_plan import PLAN
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.building.merge_parts import merge
from hjepa_shards.duplicates.find_duplicates import find_duplicates
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.reports.shards_report import write_report
from hjepa_shards.shards.exclusions import read_exclusions
from hjepa_shards.shards.manifest import _CHECKSUM_LINE, FILE_NAME, _checked_body, _checksum, load_manifest
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.sources.published.imagenet import read_classes
from hjepa_shards.sources.registry import open_split
from hjepa_shards.storage.build_output import JOURNAL
from hjepa_shards.verifying.verify_split import verify
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred
from tests.hjepa_shards.sources.published import test_coco, test_places365
from tests.hjepa_shards.sources.published.test_cifar import make_pickles

EXAMPLES = int(os.environ.get("HJEPA_FUZZ_EXAMPLES", "40"))
Edit = tuple[float, int, bytes]
"""Where (0 to 1), how many bytes go, what comes in their place."""

pieces = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\0" * 512, b"null", b"-1", b"1e999", b'"', b"[", b"{}", b"\xff\xfe", b"9" * 40, b"\n", b"\t"]),
)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 64), pieces), min_size=1, max_size=4)


def edited(data: bytes, changes: list[Edit]) -> bytes:
    for where, gone, new in changes:
        start = int(where * len(data))
        data = data[:start] + new + data[start + gone :]
    return data


@dataclass(frozen=True)
class Target:
    """A file, and what reads it."""

    path: Path
    read: Callable[[], object]
    seal: Callable[[bytes], bytes] = bytes
    """Makes a checksum right again, so that what comes after it is reached."""


def read_all(source: str, raw: Path, split: str) -> None:
    opened = open_split(source, raw, split)
    for sample in opened.samples:
        opened.read(sample)


def sidecar(root: Path) -> Target:
    path = next((root / "built").glob("*.index"))
    return Target(path, lambda: Sidecar(path).checked_rows())


def manifest(root: Path) -> Target:
    path = root / "built" / FILE_NAME

    def seal(data: bytes) -> bytes:
        body = data[: -len(_CHECKSUM_LINE % "") - 64]
        return body + (_CHECKSUM_LINE % _checksum(body)).encode()

    assert _checked_body(path, path.read_bytes())
    return Target(path, lambda: verify(root / "built"), seal)


def tar(root: Path) -> Target:
    folder = root / "foreign"
    folder.mkdir()
    path = folder / "a.tar"
    shutil.copy(next((root / "built").glob("*.tar")), path)
    return Target(path, lambda: index_tars(folder))


def cifar_pickle(root: Path) -> Target:
    folder = root / "cifar-10-batches-py"
    make_pickles(folder, ["test_batch"], "labels", images=2)
    return Target(folder / "test_batch", lambda: read_all("cifar10", root, "test"))


def stl_binary(root: Path) -> Target:
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "train_X.bin").write_bytes(bytes(2 * 3 * 96 * 96))
    (folder / "train_y.bin").write_bytes(b"\x01\x0a")
    return Target(folder / "train_y.bin", lambda: read_all("stl10", root, "train"))


def class_list(root: Path) -> Target:
    path = root / "classes.txt"
    path.write_text("n01440764 tench\n# a comment\nn01443537\n", encoding="utf-8")
    return Target(path, lambda: read_classes(path))


def coco_annotations(root: Path) -> Target:
    test_coco.raw_of(root, test_coco.annotations())
    return Target(root / "annotations" / "captions_val2017.json", lambda: read_all("coco", root, "val"))


def places_list(root: Path) -> Target:
    test_places365.unpacked(root, "256", "val")
    return Target(root / "places365_val.txt", lambda: read_all("places365", root, "val"))


def caption_list(root: Path) -> Target:
    path = put(root, {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "list.csv": CAPTIONS}) / "list.csv"
    return Target(path, lambda: open_split("image-text", root, "train", list_file=path).samples)


def raw_tar(root: Path) -> Target:
    files = {"a.jpg": jpeg(1), "a.json": b'{"caption": "one"}', "b.jpg": jpeg(2), "b.cls": b"7", "b.txt": b"two"}
    put(root, {"raw/a.tar": tarred(files)})
    return Target(root / "raw" / "a.tar", lambda: read_all("webdataset", root / "raw", "train"))


def exclusions(root: Path) -> Target:
    path = root / "excluded.jsonl"
    path.write_text(json.dumps({"source": "digits", "split": "train", "key": "0001", "reason": "twice"}) + "\n")
    return Target(path, lambda: read_exclusions(path, "digits", "train"))


def build_plan(root: Path) -> Target:
    return Target(root / "built" / PLAN, lambda: merge(root / "built"))


def build_record(root: Path) -> Target:
    path = next((root / "built" / JOURNAL).glob("digits*.json"))
    return Target(path, lambda: merge(root / "built"))


def found_copies(root: Path) -> Target:
    path = root / "copies.json"
    find_duplicates([root / "built"]).save_report(path)
    return Target(path, lambda: write_report([root / "built"], root / "page.html", duplicates=path))


CAPTIONS = b'image,caption\na.jpg,"one, and ""two"""\nb.jpg,three\n'
TARGETS = [
    *(sidecar, manifest, tar, cifar_pickle, stl_binary, class_list, coco_annotations, places_list, caption_list),
    *(raw_tar, exclusions, build_plan, build_record, found_copies),
]


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_damage_gives_only_our_own_errors(shards: Path, tmp_path: Path, make: Callable[[Path], Target]) -> None:
    shutil.copytree(shards / "digits" / "train", tmp_path / "built")
    target = make(tmp_path)
    whole = target.path.read_bytes()
    target.read()
    refused = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(edits)
    def holds(changes: list[Edit]) -> None:
        nonlocal refused
        target.path.write_bytes(target.seal(edited(whole, changes)))
        try:
            target.read()
            return
        except (InputError, ShardError) as error:
            said = str(error)
        refused += 1
        assert str(target.path.parent).removesuffix(f"/{JOURNAL}") in said

    holds()
    assert refused, "not one mutation was refused: does the target read the file?"


def json_values() -> st.SearchStrategy[object]:
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def test_a_manifest_with_any_value_in_any_place_is_read_or_refused(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    original = (shards / "digits" / "train" / FILE_NAME).read_bytes()
    content = json.loads(original)
    keys = [(key,) for key in content] + [("shards", key) for key in content["shards"]]

    @settings(max_examples=EXAMPLES * 3, deadline=None, database=None)
    @given(st.sampled_from(keys), json_values())
    def holds(key: tuple[str, ...], value: object) -> None:
        changed = json.loads(original)
        inner = changed if len(key) == 1 else changed[key[0]]
        inner[key[-1]] = value
        changed.pop("checksum", None)
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in changed.items())
        body = ("{\n" + lines).encode()
        path.write_bytes(body + (_CHECKSUM_LINE % _checksum(body)).encode())
        try:
            found = load_manifest(tmp_path)
        except ShardError as error:
            said = str(error)
        else:
            assert found.num_samples >= 0
            assert found.order_digest
            assert found.content_digest
            assert all((tmp_path / found.shard_name(i)).parent == tmp_path for i in range(found.num_shards))
            return
        assert str(path) in said

    holds()
