"""What a build excluded, by reason; with what can still be seen of it, where the raw data is available."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.images.image_formats import opened
from hjepa_shards.images.rgb_pixels import to_rgb
from hjepa_shards.images.thumbnail import thumbnail
from hjepa_shards.reports.inline_images import Budget
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.sources.registry import reopen

_REASONS, _NAMES_A_REASON, _IMAGES_A_REASON = 40, 40, 12


def excluded_images(manifest: Manifest, raw: str | None, budget: Budget) -> tuple[list[dict[str, Any]], list[str]]:
    """Exclusions by reason, the commonest first, and what could not be shown of them."""
    by_reason: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for exclusion in manifest.exclusions:
        by_reason[exclusion["reason"]].append(exclusion)
    reasons = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))
    wanted = {(e["name"], e["index"]) for reason in reasons[:_REASONS] for e in by_reason[reason][:_IMAGES_A_REASON]}
    try:
        images = _raw_images(manifest, raw, wanted) if raw is not None and wanted else {}
        notes = []
    except (InputError, ShardError) as error:
        images, notes = {}, [f"{manifest.name}: excluded images are not shown: {error}"]
    groups = []
    for reason in reasons[:_REASONS]:
        names = [str(exclusion["name"]) for exclusion in by_reason[reason]]
        pictures = [
            budget.picture(images[name, index], name)
            for name, index in ((e["name"], e["index"]) for e in by_reason[reason])
            if (name, index) in images
        ]
        groups.append(
            {
                "reason": reason,
                "count": len(names),
                "names": names[:_NAMES_A_REASON],
                "pictures": [picture for picture in pictures if picture],
            }
        )
    if len(reasons) > _REASONS:
        rest = [e for reason in reasons[_REASONS:] for e in by_reason[reason]]
        names = [str(e["name"]) for e in rest[:_NAMES_A_REASON]]
        reason = f"{len(reasons) - _REASONS:,} other reasons"
        groups.append({"reason": reason, "count": len(rest), "names": names, "pictures": []})
    return groups, notes


def _raw_images(manifest: Manifest, raw: str, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """(name, index) -> thumbnail of those raw images of which anything can be decoded."""
    split = reopen(manifest, raw)
    found = {}
    for sample in split.samples:
        if (sample.name, sample.index) in wanted:
            image = _whatever_decodes(split.read(sample))
            if image is not None:
                found[sample.name, sample.index] = image
    return found


def _whatever_decodes(data: bytes | np.ndarray) -> bytes | None:
    """A thumbnail even of a truncated file; None where there is nothing to see."""
    if isinstance(data, np.ndarray):
        return thumbnail(Image.fromarray(data).convert("RGB"))
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with opened(data) as image:
            return thumbnail(to_rgb(image))
    except DecodeError:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
