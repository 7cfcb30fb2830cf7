"""Small images for pages."""

import io

import pytest
from PIL import Image

from hjepa_shards.images.thumbnail import thumbnail


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (48, 48), (49, 49), (5000, 4000)])
def test_any_image_becomes_a_small_one(size: tuple[int, int]) -> None:
    data = thumbnail(Image.new("RGB", size))
    with Image.open(io.BytesIO(data)) as image:
        assert max(image.size) <= 144
        assert min(image.size) >= 1
    assert len(data) < 30_000
