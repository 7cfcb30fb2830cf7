"""Where a build writes: folders, and a real S3 server on this machine, which must hold the same bytes."""

import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
import pytest

from hjepa_shards.building.build import BuildOptions, Part, build, build_part
from hjepa_shards.building.merge_parts import merge, unmerged_below
from hjepa_shards.errors import BuildMismatch, InputError
from hjepa_shards.storage.build_output import JOURNAL, FolderTarget, Target, is_url, target_at, target_of
from tests.hjepa_shards.building.test_build import files_of
from tests.processes import free_port, wait_for

OPTIONS = BuildOptions(samples_per_shard=48, limit=200)
HALVES = BuildOptions(samples_per_shard=10, limit=20)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    pytest.importorskip("moto", reason="no S3 server: moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(address)
            yield address
        finally:
            server.kill()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty bucket; its server is known from the environment, as boto has it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3")
    name = "bucket-" + "".join(filter(str.isalnum, request.node.name.lower()))[:40]
    fs.mkdir(name)
    yield f"s3://{name}"
    fs.clear_instance_cache()


@pytest.fixture(params=["folder", "memory", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    roots = {"folder": lambda: tmp_path, "memory": lambda: f"memory://{tmp_path.name}"}
    root = roots[request.param]() if request.param in roots else f"{request.getfixturevalue('bucket')}/prefix/"
    target = target_at(root, "source", "train")
    target.prepare()
    return target


def remote_files(url: str) -> dict[str, bytes]:
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return {name.removeprefix(f"{root}/"): data for name, data in fs.cat(fs.find(root)).items()}


def test_files_are_written_read_listed_and_removed(target: Target) -> None:
    assert target.names() <= {f"{JOURNAL}/.lock"}
    with pytest.raises(FileNotFoundError):
        target.read("a.tar")
    with target.new_file("a.tar") as file:
        file.write(b"tar")
    target.write(f"{JOURNAL}/a.json", b"{}")
    target.write(f"{JOURNAL}/a.json", b"{1}")
    assert target.names() == {"a.tar", f"{JOURNAL}/a.json"}
    assert target.read_all([f"{JOURNAL}/a.json", "a.tar"]) == [b"{1}", b"tar"]
    target.remove("a.tar")
    target.remove("a.tar")
    assert target.names() == {f"{JOURNAL}/a.json"}


def test_only_the_first_creates_a_file(target: Target) -> None:
    assert target.create(f"{JOURNAL}/plan.json", b"first")
    assert not target.create(f"{JOURNAL}/plan.json", b"second")
    assert target.read(f"{JOURNAL}/plan.json") == b"first"
    assert target.names() == {f"{JOURNAL}/plan.json"}


def test_a_file_whose_block_fails_is_not_there(target: Target) -> None:
    def fail() -> None:
        with target.new_file("a.tar") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.names() == set()


def test_leftovers_go_and_those_of_others_stay(target: Target) -> None:
    for name in (".a-1.tar.77.tmp", ".a-2.tar.77.tmp", f"{JOURNAL}/.a-1.json.77.tmp", "a-1.tar", f"{JOURNAL}/x.tmp"):
        target.write(name, b"")
    target.remove_leftovers(("a-1", "b"))
    assert target.names() == {".a-2.tar.77.tmp", "a-1.tar", f"{JOURNAL}/x.tmp"}
    target.remove_leftovers()
    assert target.names() == {"a-1.tar", f"{JOURNAL}/x.tmp"}


def test_a_target_travels_to_other_processes(target: Target) -> None:
    target.write("a.tar", b"tar")
    assert pickle.loads(pickle.dumps(target)).read("a.tar") == b"tar"


def test_parts_share_a_folder_and_nothing_else_does(tmp_path: Path) -> None:
    target = FolderTarget(tmp_path)
    target.prepare()
    with target.alone_with(".part-1-of-2"), target.alone_with(".part-2-of-2"):
        with pytest.raises(InputError, match="another process"), target.alone():
            pass
        with pytest.raises(InputError, match="another process"), target.alone_with(".part-1-of-2"):
            pass
    with target.alone(), pytest.raises(InputError, match="another process"), target.alone_with(".part-1-of-2"):
        pass


def test_urls_are_told_from_folders() -> None:
    assert [is_url(path) for path in ("s3://a/b", Path("a/b"), "a/b", "/a:b")] == [True, False, False, False]
    assert target_at("s3://a/", "b", "c").where == "s3://a/b/c"
    assert target_of(Path("a")).where == "a"


@pytest.mark.parametrize("url", ["nothing://a/b", "s3://no-such-bucket/x"])
def test_an_address_that_is_none_is_one_line(bucket: str, url: str) -> None:
    with pytest.raises(InputError, match=url) as caught:
        build("digits", raw=None, out=url, splits=("train",), options=OPTIONS)
    assert "\n" not in str(caught.value)


def digits_of(shards: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(shards / "digits").items() if name.startswith("train/")}


def test_a_build_into_a_bucket_is_the_build_into_a_folder_and_repairs_what_was_lost(bucket: str, shards: Path) -> None:
    read: list[int] = []

    def build_there(options: BuildOptions) -> None:
        build(
            "digits",
            raw=None,
            out=f"{bucket}/x",
            splits=("train",),
            options=options,
            progress=lambda done, total, num_bytes: read.append(num_bytes),
        )

    build_there(OPTIONS)
    assert remote_files(f"{bucket}/x/digits") == digits_of(shards)
    fs = fsspec.filesystem("s3")
    for lost in ("digits-train-000001.tar", f"{JOURNAL}/digits-train-000003.json", "manifest.json"):
        fs.rm_file(f"{bucket}/x/digits/train/{lost}")
    build_there(OPTIONS)
    assert read[-1] == 2 * 48 * 64  # two shards of 8x8 digits
    assert remote_files(f"{bucket}/x/digits") == digits_of(shards)
    with pytest.raises(BuildMismatch, match="seed: 0 before, 1 now"):
        build_there(replace(OPTIONS, seed=1))


@pytest.mark.slow
def test_two_processes_build_into_a_bucket(bucket: str, shards: Path) -> None:
    command = [sys.executable, "-c", "from hjepa_shards.cli import main; main()"] + (
        f"build digits --out {bucket}/x --split train --limit 200 --samples-per-shard 48 --workers 2"
    ).split()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert remote_files(f"{bucket}/x/digits") == digits_of(shards)


def test_parts_in_a_bucket_are_merged(bucket: str, shards: Path) -> None:
    for number in (2, 1):
        with pytest.raises(InputError, match=r"no .journal/plan.json|5 shards expected, 3 missing, of part 1/2"):
            [merge(where) for where in unmerged_below(f"{bucket}/x")]
        part = Part(number=number, of=2)
        build_part("digits", raw=None, out=f"{bucket}/x", part=part, splits=("train",), options=OPTIONS)
    (where,) = unmerged_below(f"{bucket}/x")
    assert merge(where).num_samples == 200
    assert remote_files(f"{bucket}/x/digits") == digits_of(shards)


def test_what_a_source_unpacks_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HJEPA_SCRATCH", str(tmp_path))
    assert target_at("s3://a", "b", "c").scratch.parent == tmp_path
    assert os.sep not in target_at("s3://a/b/c", "d", "e").scratch.name


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_stars_and_brackets_in_a_target_are_part_of_its_name(tmp_path: Path, kind: str) -> None:
    name = f"o[1]*t?{{a}}-{secrets.token_hex(4)}"
    root = f"memory://{name}" if kind == "memory" else str(tmp_path / name)
    target_at(root.replace("*", "x"), "digits", "train").prepare()  # what a pattern would find
    way = partial(build_part, "digits", raw=None, out=root, splits=["train"], options=HALVES)
    parts = [way(part=Part(number=number, of=2)) for number in (1, 2)]
    assert [built.num_shards for (built,) in parts] == [1, 1]
    merged = [merge(where) for where in unmerged_below(root)]
    assert [manifest.num_samples for manifest in merged] == [20]
    again = build("digits", raw=None, out=root, splits=["train"], options=HALVES)
    assert [manifest.shard_sha256 for manifest in again] == [manifest.shard_sha256 for manifest in merged]
