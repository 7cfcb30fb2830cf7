"""Raw datasets in the layout in which they are published, small, for the tests of their sources."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(number: int, side: int = 24) -> bytes:
    """A small photograph-like JPEG, another one for each number."""
    y, x = np.mgrid[0:side, 0 : side + 8]
    pixels = np.stack([x * 7 + number, y * 5 + 3 * number, x * y + number], -1) % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def put(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tarred(files: Mapping[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files; a name that ends with a slash is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size, info.mode, info.mtime = len(data), 0o644, 1_339_000_000
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
