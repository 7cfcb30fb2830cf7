"""Shards at a URL: the same batches and proof as from a folder, by range or through the cache, over any connection."""

import gzip
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zstandard

from hjepa_shards.building.shard_writer import sha256_of
from hjepa_shards.errors import InputError, ManifestError, ShardError, TooMuchDamage
from hjepa_shards.loader import remote_store
from hjepa_shards.loader.batch import Batch
from hjepa_shards.loader.loader import open_loader
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.loader.split_view import SplitView
from hjepa_shards.loader.stage_times import Traffic
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.shards.location import place_of, splits_at
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sidecar import HEADER_BYTES, ROW
from hjepa_shards.storage import remote_files
from hjepa_shards.storage.retry import Patience
from hjepa_shards.storage.shard_cache import CacheConfig
from tests.hjepa_shards.loader.test_loader import mix
from tests.hjepa_shards.shards.test_manifest_content import sealed
from tests.hjepa_shards.storage.bad_server import Answer, Server, serving
from tests.hjepa_shards.storage.test_build_output import bucket, s3_server  # noqa: F401 (fixtures)
from tests.hjepa_shards.verifying.test_verify_split import flip
from tests.processes import free_port, wait_for

SOURCES = ({"name": "digits", "weight": 0.7}, {"name": "photos", "weight": 0.3})
STEPS, BATCH = 5, 40


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with serving() as server:
        for path in shards.rglob("*"):
            if path.is_file() and ".journal" not in path.parts:
                server.files[str(path.relative_to(shards))] = path.read_bytes()
        yield server


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "PATIENCE", Patience(first_wait_s=0.01))


def run_of(mixture: Mixture, steps: int = STEPS) -> list[tuple[int, bytes, list[int]]]:
    def row(batch: Batch) -> tuple[int, bytes, list[int]]:
        return batch.proof, batch.images.tobytes(), batch.samples.tolist()

    with open_loader(mixture, seed=3, global_batch=BATCH) as loader:
        return [row(next(loader)) for _ in range(steps)]


def at(root: str, folder: Path | None = None, **more: Any) -> Mixture:
    cache = {"cache": {"folder": str(folder), "gigabytes": 1}} if folder else {}
    return mix(root, SOURCES, **cache, **more)  # type: ignore[arg-type]


def shard_requests(server: Server) -> list[tuple[str, str | None]]:
    return [(path, span) for path, span, _ in server.requests if path.endswith(".tar")]


def test_by_range_batches_are_those_of_the_folder_and_no_whole_shard_is_read(shards: Path, server: Server) -> None:
    assert run_of(at(server.url())) == run_of(at(str(shards)))
    requests = shard_requests(server)
    assert len(requests) >= STEPS * BATCH
    assert all(part for _, part in requests)


@pytest.mark.parametrize("says_so", [True, False])
def test_a_server_that_knows_no_ranges_needs_a_cache_and_sends_each_shard_once(
    shards: Path, server: Server, tmp_path: Path, says_so: bool
) -> None:
    expected = run_of(at(str(shards)), steps=1)
    server.otherwise, server.ranges = Answer(ignores_range=True), "bytes" if not says_so else "none"
    with pytest.raises(InputError, match=r"ignores Range.*give the run a data.cache"):
        run_of(at(server.url()), steps=1)
    assert len(shard_requests(server)) <= (4 if says_so else 4 * BATCH)
    server.requests.clear()
    assert run_of(at(server.url(), tmp_path / "cache"), steps=1) == expected
    if says_so:
        names = [path for path, _ in shard_requests(server)]
        assert len(names) < 8 + BATCH // 2, "each shard, and what threads ask for until one of them knows"


def test_through_a_cache_they_are_too_and_each_shard_comes_once(shards: Path, server: Server, tmp_path: Path) -> None:
    expected = run_of(at(str(shards)))
    order = {"order": {"window": 2}}  # several windows an epoch
    expected_windows = run_of(at(str(shards), **order))
    assert run_of(at(server.url(), tmp_path / "cache")) == expected
    assert run_of(at(server.url(), tmp_path / "cache", **order)) == expected_windows
    whole = [path for path, part in shard_requests(server) if not part]
    assert len(whole) == len(set(whole)) == 5 + 3
    server.requests.clear()
    assert run_of(at(server.url(), tmp_path / "cache")) == expected
    assert shard_requests(server) == []


def test_shards_of_later_windows_come_whole_too(server: Server, tmp_path: Path) -> None:
    run_of(at(server.url(), tmp_path / "cache", order={"window": 1}), steps=20)
    assert len({path for path, part in shard_requests(server) if not part}) == 5 + 3


def test_the_first_batch_waits_for_no_whole_shard(server: Server, tmp_path: Path) -> None:
    mixture = at(server.url(), tmp_path / "cache")
    with open_loader(mixture, seed=3, global_batch=BATCH) as loader:
        server.otherwise = Answer(pause_s=1.0)  # after each 16 kB: only a sample's bytes come at once
        began = time.monotonic()
        next(loader)
        took_s = time.monotonic() - began
        server.otherwise = Answer()
        server.over.set()
    photos = load_manifest_bytes(server)
    assert took_s < photos / 16_384


def load_manifest_bytes(server: Server) -> int:
    return max(len(data) for path, data in server.files.items() if path.endswith(".tar"))


@pytest.mark.parametrize("cached", [False, True])
def test_over_a_bad_line_the_epoch_is_the_same(
    shards: Path, server: Server, tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delays, cut connections, truncated and stale answers, 503: none of it is damage."""
    # whose request meets which answer is chance, and five bad ones in a row would rightly end the run
    monkeypatch.setattr(remote_files, "_TRIES_OF_SHORT", 12)
    monkeypatch.setattr(remote_store, "_MOST_WHOLE_IN_A_ROW", 12)
    monkeypatch.setattr(remote_files, "PATIENCE", Patience(tries_without_answer=12, first_wait_s=1e-4))
    expected = run_of(at(str(shards)))
    mixture = at(server.url(), tmp_path / "cache" if cached else None)
    generator = random.Random(1)
    bad = [
        Answer(status=503),
        Answer(ends_after=300),
        Answer(ends_after=10, resets=True),
        Answer(body=b"a page that says: log in first"),
        Answer(pause_s=0.05),
        Answer(ignores_range=True),
    ]
    server.script = [generator.choice([*bad, Answer(), Answer(), Answer()]) for _ in range(400)]
    assert run_of(mixture) == expected


def test_stale_bytes_are_read_again_and_not_admitted(shards: Path, server: Server, tmp_path: Path) -> None:
    expected = run_of(at(str(shards)), steps=2)
    mixture = at(server.url(), tmp_path / "cache")
    names = [name for name in server.files if name.endswith(".tar")]
    right = {name: server.files[name] for name in names}
    for name in names:  # an older upload of the same size
        stale = bytearray(right[name])
        stale[600:] = bytes(len(stale) - 600)
        server.files[name] = bytes(stale)
    with open_loader(mixture, seed=3, global_batch=BATCH) as loader, pytest.raises(TooMuchDamage, match="crc32"):
        next(loader)
    kept = {path.stat().st_size for path in (tmp_path / "cache").iterdir()}
    assert not kept & {len(data) for data in right.values()}
    server.files |= right
    assert run_of(mixture, steps=2) == expected


def test_a_cached_shard_that_rots_is_read_from_the_origin_and_fetched_again(
    shards: Path, server: Server, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    expected = run_of(at(str(shards)))
    mixture = at(server.url(), cache)
    assert run_of(mixture) == expected
    manifest = load_manifest(shards / "digits" / "train")
    for sha256 in manifest.shard_sha256:
        flip(cache / sha256, 600)  # inside the first image
    with open_loader(mixture, seed=3, global_batch=BATCH) as loader:
        proof = [next(loader).proof for _ in range(STEPS)][-1]
        assert not any(loader.damaged.values())
    assert proof == expected[-1][0]
    held = [cache / sha256 for sha256 in manifest.shard_sha256 if (cache / sha256).exists()]
    rotten = [path for path in held if sha256_of(path) != path.name]
    assert len(rotten) < len(manifest.shard_sha256) / 2, (
        "those whose first image was requested are gone, or right again"
    )


@pytest.mark.parametrize("form", [".zst", ".gz"])
def test_compressed_shards_are_made_plain_on_admission(shards: Path, server: Server, tmp_path: Path, form: str) -> None:
    expected = run_of(at(str(shards)), steps=3)
    for name in [name for name in server.files if name.endswith(".tar")]:
        plain = server.files.pop(name)
        server.files[name + form] = gzip.compress(plain) if form == ".gz" else zstandard.compress(plain)
    with pytest.raises(InputError, match=r"compressed shards cannot be read by range; give the run a data.cache"):
        run_of(at(server.url()))
    assert run_of(at(server.url(), tmp_path / "cache"), steps=3) == expected


def test_a_compressed_shard_that_is_larger_than_its_shard_could_be_is_cut(server: Server, tmp_path: Path) -> None:
    """Of a server that sends without end no more than that is taken, however much room the cache has.

    What is noticed first, that too much comes or that it is something else, depends on how it comes in pieces.
    """
    for name in [name for name in server.files if name.endswith(".tar")]:
        junk = np.random.default_rng(0).bytes(1 << 20)
        server.files[name + ".gz"] = gzip.compress(server.files.pop(name) + junk)
    with pytest.raises(ShardError, match=r"(more|other) bytes come than .*manifest.*; .*upload"):
        run_of(at(server.url(), tmp_path / "cache"), 1)


def test_a_shard_that_is_gone_stops_the_run_and_is_not_replaced(server: Server) -> None:
    mixture = at(server.url())
    del server.files["digits/train/digits-train-000003.tar"]
    with pytest.raises(InputError, match=r"digits-train-000003.tar: cannot be fetched"):
        run_of(mixture)


def test_a_shard_cut_short_at_the_origin_is_damage(shards: Path, server: Server, tmp_path: Path) -> None:
    """As in a folder: the same samples replace the lost ones."""
    name = "photos/train/photos-train-000002.tar"
    local = Path(shutil.copytree(shards, tmp_path / "shards"))
    cut = (local / name).read_bytes()[:-30_000]
    (local / name).write_bytes(cut)
    server.files[name] = cut
    assert run_of(at(server.url()), steps=4) == run_of(at(str(local)), steps=4)


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_index_at_the_origin_is_damage_row_by_row(
    shards: Path, server: Server, tmp_path: Path, cached: bool
) -> None:
    """As in a folder: the samples of other rows are shown."""
    with open_loader(at(str(shards)), seed=3, global_batch=BATCH) as loader:
        batch = next(loader)
        drawn = int(batch.samples[batch.entries == 1][0])
    manifest = load_manifest(shards / "photos/train")
    ends = np.cumsum(manifest.shard_samples)
    shard = int(np.searchsorted(ends, drawn, side="right"))
    row = drawn - int(ends[shard] - manifest.shard_samples[shard])
    name = f"photos/train/{manifest.shard_name(shard)}.index"
    local = Path(shutil.copytree(shards, tmp_path / "shards"))
    flip(local / name, HEADER_BYTES + row * ROW.itemsize + 9)
    server.files[name] = (local / name).read_bytes()
    cache = tmp_path / "cache" if cached else None
    found = run_of(at(server.url(), cache), steps=4)
    assert found == run_of(at(str(local)), steps=4)
    assert found != run_of(at(str(shards)), steps=4), "nothing was damaged"
    with open_loader(at(server.url(), cache), seed=3, global_batch=BATCH) as loader:
        for _ in range(4):
            next(loader)
        [(sample, reason)] = loader.damaged["photos"].items()
    assert sample == drawn
    assert name in reason
    assert f"row {row} " in reason


def test_indexes_come_side_by_side(server: Server) -> None:
    server.otherwise = Answer(pause_s=0.05)
    run_of(at(server.url()), steps=1)
    assert server.side_by_side > 2


def test_the_loader_counts_what_came_from_where(shards: Path, server: Server, tmp_path: Path) -> None:
    def traffic_of(mixture: Mixture) -> Traffic:
        with open_loader(mixture, seed=3, global_batch=BATCH) as loader:
            for _ in range(STEPS):
                next(loader)
            return loader.stats().traffic

    assert traffic_of(at(str(shards))) == Traffic()
    by_range = traffic_of(at(server.url()))
    assert by_range.ranges >= STEPS * BATCH
    assert (by_range.cached, by_range.shards) == (0, 0)
    spans = [part.removeprefix("bytes=").split("-") for _, part in shard_requests(server) if part]
    assert 0 < by_range.num_bytes <= sum(int(last) - int(first) + 1 for first, last in spans)
    cold = traffic_of(at(server.url(), tmp_path / "cache"))
    assert cold.shards == 8
    manifests = [load_manifest(shards / name / "train") for name in ("digits", "photos")]
    assert cold.num_bytes >= sum(int(manifest.shard_bytes.sum()) for manifest in manifests)
    warm = traffic_of(at(server.url(), tmp_path / "cache"))
    assert (warm.ranges, warm.shards, warm.num_bytes) == (0, 0, 0)
    assert warm.cached >= STEPS * BATCH


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("http://127.0.0.1:9/x", "cannot be fetched"),
        ("nosuch://bucket/x", "nosuch"),
    ],
)
def test_a_place_that_is_none_is_refused(root: str, message: str) -> None:
    with pytest.raises((InputError, ShardError), match=message):
        at(root)


def test_a_source_that_is_not_there_is_refused_with_its_address(server: Server) -> None:
    with pytest.raises(InputError, match=r"scattered/test/manifest.json: cannot be fetched.*a built split is expected"):
        mix(server.url(), ({"name": "scattered", "split": "test", "weight": 1},))  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [False, True])
def test_from_s3_batches_are_those_of_the_folder(
    shards: Path,
    bucket: str,  # noqa: F811
    tmp_path: Path,
    cached: bool,
) -> None:
    fs = fsspec.filesystem("s3")
    for name in ("digits", "photos"):
        fs.put(f"{shards}/{name}/train/", f"{bucket}/shards/{name}/train/", recursive=True)
    mixture = at(f"{bucket}/shards", tmp_path / "cache" if cached else None)
    assert run_of(mixture) == run_of(at(str(shards)))


@pytest.fixture
def nginx(shards: Path, tmp_path: Path) -> Iterator[str]:
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.skip("nginx is not installed")
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/log; user root;\nevents {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy; "
        f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; root {shards}; }} }}\n"
    )
    with subprocess.Popen([program, "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/digits/train/manifest.json")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.parametrize("cached", [False, True])
def test_from_nginx_batches_are_those_of_the_folder(shards: Path, nginx: str, tmp_path: Path, cached: bool) -> None:
    assert run_of(at(nginx, tmp_path / "cache" if cached else None)) == run_of(at(str(shards)))


def test_many_ranges_come_side_by_side_as_one_by_one(server: Server) -> None:
    name = next(name for name in server.files if name.endswith(".tar"))
    data, url = server.files[name], server.url(name)
    generator = np.random.Generator(np.random.Philox(0))
    starts = generator.integers(0, len(data) - 500, 30).tolist()
    found = remote_files.remote_ranges([(url, start, start + 500) for start in starts])
    assert found == [data[start : start + 500] for start in starts]
    assert [remote_files.remote_range(url, start, start + 500) for start in starts[:3]] == found[:3]


@pytest.mark.parametrize("cached", [False, True])
def test_evaluation_and_lists_read_the_same_from_a_url(
    shards: Path, server: Server, tmp_path: Path, cached: bool
) -> None:
    cache = CacheConfig(folder=tmp_path / "cache", gigabytes=1) if cached else None
    url, folder = place_of(server.url(), "photos", "train"), shards / "photos" / "train"
    far = list(read_split(url, image_size=8, batch=16, cache=cache))
    near = list(read_split(folder, image_size=8, batch=16))
    assert len(far) == len(near) > 2
    for one, other in zip(far, near, strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
    there, here = SplitView(f"{url}/"), SplitView(folder)
    assert len(there) == len(here)
    for one, other in zip(there[5:9], here[5:9], strict=True):
        assert np.array_equal(one.image, other.image)
        assert (one.label, one.captions) == (other.label, other.captions)
    there.close()
    here.close()


def test_splits_at_a_url_are_those_of_usual_names_and_the_requested_one(shards: Path, server: Server) -> None:
    assert splits_at(server.url(), "digits") == splits_at(str(shards), "digits")
    server.files["digits/all/manifest.json"] = b"{}"
    assert "all" not in splits_at(server.url(), "digits")
    assert "all" in splits_at(server.url(), "digits", ["all"])
    assert splits_at(server.url(), "nosuch") == []


def test_a_third_partys_manifest_touches_no_file_outside_the_cache(server: Server, tmp_path: Path) -> None:
    """A digest that is a path would be joined to the cache's folder, and the file there removed as damaged."""
    mine = tmp_path / "thesis.tex"
    mine.write_text("all my work")
    name = "digits/train/manifest.json"
    content = json.loads(server.files[name])
    del content["checksum"]
    content["shards"]["sha256"][0] = str(mine)
    server.files[name] = sealed(json.dumps(content, indent=1).removesuffix("\n}").encode())
    with pytest.raises(ManifestError, match=r"shards\.sha256\.0"):
        at(server.url(), tmp_path / "cache")
    assert mine.read_text() == "all my work"


@pytest.mark.parametrize("chunked", [False, True])
def test_what_goes_on_after_its_end_is_cut(server: Server, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest and an index have a size that they may be, a range the one requested."""
    monkeypatch.setattr("hjepa_shards.shards.location.MOST_BYTES", 1 << 20)
    server.otherwise = Answer(chunked=chunked)
    server.files["digits/test/manifest.json"] += bytes(64 << 20)
    with pytest.raises(ManifestError, match=r"at most 1,048,576 bytes expected"):
        mix(server.url(), ({"name": "digits", "split": "test", "weight": 1},))  # type: ignore[arg-type]
    url = server.url(next(name for name in server.files if name.endswith(".tar")))
    server.otherwise = Answer(chunked=chunked, ignores_range=True)
    data = server.files[url.removeprefix(server.url())]
    server.files[url.removeprefix(server.url())] = data + bytes(64 << 20)
    with pytest.raises(remote_files.WholeFileError) as whole:
        remote_files.remote_range(url, 1000, 1500)
    assert whole.value.part == data[1000:1500]
    assert remote_files.remote_start(url, 2000) == data[:2000]


@pytest.mark.parametrize("cached", [False, True])
def test_an_index_that_is_larger_than_its_samples_need_is_damage(server: Server, tmp_path: Path, cached: bool) -> None:
    for name in [name for name in server.files if name.endswith(".index")]:
        server.files[name] += bytes(1 << 20)
    with (
        open_loader(at(server.url(), tmp_path / "cache" if cached else None), seed=3, global_batch=BATCH) as loader,
        pytest.raises(TooMuchDamage, match="bytes expected for"),
    ):
        next(loader)
