"""A small CIFAR-10 as a server would have it."""

import hashlib
import io
import tarfile
from pathlib import Path

from hjepa_shards.downloading.published_files import RemoteFile
from tests.hjepa_shards.sources.published.test_cifar import BATCHES, make_pickles
from tests.hjepa_shards.storage.bad_server import Server

ARCHIVE = "cifar-10-python.tar.gz"


def cifar10_archive(scratch: Path, images: int = 3) -> tuple[bytes, int]:
    """An archive like CIFAR-10's with few images a batch, and what comes out of it in bytes."""
    folder = scratch / "cifar-10-batches-py"
    make_pickles(folder, [*BATCHES, "test_batch"], "labels", images)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return buffer.getvalue(), sum(path.stat().st_size for path in folder.iterdir())


def pinned(server: Server, name: str, data: bytes, **more: object) -> RemoteFile:
    """A published file, as the server has it."""
    server.files[name] = data
    return RemoteFile(
        url=server.url(name),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        **({"splits": ("train", "test")} | more),  # type: ignore[arg-type]
    )
