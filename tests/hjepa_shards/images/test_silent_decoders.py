"""Damaged images of every format: errors of ours say so, and nothing else is written to stderr, by no library."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.errors import DecodeError
from hjepa_shards.images.decode import decode
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, encode
from hjepa_shards.images.image_formats import inspect
from tests.conftest import Command
from tests.hjepa_shards.reports.test_split_survey import foreign

FORMATS = {
    "jpg": [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}],
    "png": [{"format": "PNG"}],
    "webp": [{"format": "WEBP"}, {"format": "WEBP", "lossless": True}],
    "tif": [{"format": "TIFF", "compression": name} for name in ("raw", "jpeg", "tiff_lzw", "tiff_deflate")],
    "gif": [{"format": "GIF"}],
    "bmp": [{"format": "BMP"}],
    "jp2": [{"format": "JPEG2000"}],
}


def images(extension: str) -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    for options in FORMATS[extension]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, **options)  # type: ignore[arg-type]
        yield buffer.getvalue()


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    """Cut short, with other bytes at the beginning or anywhere, with more bytes in between."""
    draw = np.random.default_rng(1)
    for number in range(count):
        changed, place = bytearray(data), int(draw.integers(1, len(data)))
        if number % 4 == 0:
            del changed[place:]
        elif number % 4 == 1:
            changed[place:place] = draw.bytes(9)
        else:
            for at in draw.integers(0, len(data) if number % 4 == 2 else 200, 5):
                changed[int(at)] = int(draw.integers(256))
        yield bytes(changed)


@pytest.mark.parametrize("extension", FORMATS)
def test_no_decoder_speaks(extension: str, capfd: pytest.CaptureFixture[str]) -> None:
    refused = 0
    for data in images(extension):
        for broken in damaged(data, 20):
            for settings in (KEEP, PNG, JPEG_256):
                try:
                    encode(broken, settings)
                except DecodeError:
                    refused += 1
            try:
                info = inspect(broken)
                decode(broken, info.colour, info.orientation)
            except DecodeError:
                refused += 1
    assert refused > 20
    assert capfd.readouterr() == ("", "")
    os.write(2, b"a driver's last words")
    assert capfd.readouterr() == ("", "a driver's last words")


def test_where_logging_is_configured_it_has_what_pillow_says(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="PIL"):
        logging.getLogger("PIL.TiffImagePlugin").error("more samples than can be decoded")
    assert "more samples than can be decoded" in caplog.text


def test_builds_and_their_workers_verify_and_loaders_are_silent(command: Command, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    whole = list(images("tif"))[2]
    broken = [data for data in damaged(whole, 24)][::2]
    for number, data in enumerate([whole, *broken]):
        (raw / f"{number:02}.tif").write_bytes(data)
    program = [str(Path(sys.executable).parent / "hjepa-shards"), "build", "folder", "--raw", str(raw), "--out"]
    done = subprocess.run(
        [*program, str(tmp_path), "--samples-per-shard", "4", "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert "excluded" in done.stdout
    folder = foreign(tmp_path / "foreign", {"0.tif": whole, **{f"{i}.tif": data for i, data in enumerate(broken, 1)}})
    code, out, err = command("verify", folder, "--deep")
    assert (code, err) == (1, "")
    assert "cannot be decoded" in " ".join(out.split())
