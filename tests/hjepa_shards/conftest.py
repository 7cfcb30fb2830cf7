"""What tests of the shards share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hjepa_shards.downloading.published_files import DOWNLOADS
from tests.hjepa_shards.small_downloads import ARCHIVE, cifar10_archive, pinned
from tests.hjepa_shards.storage.bad_server import Server, serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Has a small CIFAR-10, which is the published one in these tests."""
    data, unpacked_bytes = cifar10_archive(tmp_path / "scratch")
    with serving() as server:
        file = pinned(server, ARCHIVE, data, unpacks_to=("cifar-10-batches-py",), unpacked_bytes=unpacked_bytes)
        monkeypatch.setitem(DOWNLOADS, "cifar10", (file,))
        yield server
