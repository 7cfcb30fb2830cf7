"""One page about built splits: what the images look like, how they are spread, what was excluded, where they come from.

A single HTML file (html_page.py) with its images as data URIs within a fixed number of bytes. Names, captions, classes
and reasons are other people's text.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.shown_text import significant, size
from hjepa_shards.errors import InputError
from hjepa_shards.images.image_formats import Codec, Colour
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.mixture.source_shares import dataset_stats
from hjepa_shards.reports import svg_bars
from hjepa_shards.reports.duplicates_section import copies_section, read_copies
from hjepa_shards.reports.exclusions_section import excluded_images
from hjepa_shards.reports.html_page import render_page
from hjepa_shards.reports.inline_images import Budget
from hjepa_shards.reports.split_survey import MAX_ROWS, Rows, Survey, counts_by
from hjepa_shards.shards.manifest import Manifest, class_name, load_manifest

MAX_IMAGE_BYTES = 3_000_000
"""All images of a page together, before base64 makes them a third larger."""
_RENAMED = {Colour.DEEP: "16 bit", Colour.RGB: "RGB", Colour.CMYK: "CMYK", Colour.UNKNOWN: "other"}
_COLOURS = tuple(_RENAMED.get(colour, colour.name.lower()) for colour in Colour)
_SHEET = 60
_CAPTIONED = 12
_NAMED_CLASSES, _LISTED_CLASSES = 30, 1000


def write_report(
    folders: Sequence[Path],
    path: Path,
    *,
    mixture: Mixture | None = None,
    duplicates: Path | None = None,
    raw: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write the page about the splits in `folders` to `path`. Returns what could not be shown, a sentence each.

    mixture: its shares are drawn.  duplicates: what `hjepa-shards duplicates --report` wrote.
    raw: source -> its raw data as `build` takes it, from where excluded images are shown.
    InputError, ManifestError for what cannot be read or written.
    """
    found = {manifest.name: (folder, manifest) for folder in folders for manifest in [load_manifest(folder)]}
    if len(found) < len(folders):
        raise InputError(f"{len(folders)} splits: each source and split once expected, {', '.join(found)} found")
    groups = read_copies(duplicates) if duplicates else None
    budget = Budget(MAX_IMAGE_BYTES, parts=len(found) + (groups is not None))
    notes: list[str] = []
    splits = []
    for folder, manifest in found.values():
        budget.next_part()
        excluded, said = excluded_images(manifest, (raw or {}).get(manifest.source), budget)
        notes += said
        with Survey(folder, manifest) as survey:
            splits.append(_split(folder, survey, excluded, budget))
    budget.next_part()
    page = {
        "splits": splits,
        "mixture": _mixture(mixture) if mixture else None,
        "duplicates": copies_section(groups, found, budget) if groups else None,
        "num_samples": sum(manifest.num_samples for _, manifest in found.values()),
        "num_bytes": sum(int(manifest.shard_bytes.sum()) for _, manifest in found.values()),
        "num_excluded": sum(len(manifest.exclusions) for _, manifest in found.values()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made: {error.strerror}; choose another --html") from error
    template = resources.files("hjepa_shards.reports").joinpath("report.html").read_text(encoding="utf-8")
    write_atomically(path, render_page(template, page).encode())
    return tuple(notes)


# ---- one split


def _split(folder: Path, survey: Survey, excluded: list[dict[str, Any]], budget: Budget) -> dict[str, Any]:
    manifest = survey.manifest
    rows = survey.rows()
    shown = sorted((survey.show(sample) for sample in survey.choose(_SHEET)), key=lambda s: (s.label, s.index))
    captioned = [s for s in shown if s.captions][:_CAPTIONED]
    gallery = [picture for s in captioned if (picture := budget.shown(s, manifest.class_names))]
    others = [s for s in shown if s not in captioned]
    pictures = [picture for s in others if (picture := budget.shown(s, manifest.class_names))]
    images = manifest.num_samples
    return {
        "name": manifest.name,
        "folder": str(folder),
        "manifest": manifest,
        "num_bytes": int(manifest.shard_bytes.sum()),
        "pictures": pictures,
        "even": len({(s.width, s.height) for s in others}) == 1,
        "captioned": gallery,
        "classes": _classes(rows, manifest),
        "sizes": _sizes(rows),
        "codecs": counts_by(rows.table["codec"], [codec.name for codec in Codec]),
        "colours": counts_by(rows.table["colour"], _COLOURS),
        "turned": int((rows.table["orientation"] > 1).sum()),
        "looked_at": len(rows.table),
        "rule": f"{len(rows.table):,} of {images:,} samples, in {rows.num_shards:,} of {manifest.num_shards:,} shards "
        f"(a keyed choice; all of them up to {MAX_ROWS:,})"
        if len(rows.table) < images
        else "",
        "excluded": excluded,
        "facts": _facts(manifest),
    }


def _sizes(rows: Rows) -> list[dict[str, Any]]:
    """Histograms of pixels, ratio and bytes; where there is one value only, that value."""
    if not len(rows.table):
        return []
    width, height = rows.table["width"].astype(np.int64), rows.table["height"].astype(np.int64)
    columns = [
        ("width", width, _pixels),
        ("height", height, _pixels),
        ("width / height", width / np.maximum(1, height), significant),
    ]
    found = []
    if width.min() == width.max() and height.min() == height.max():
        columns = []
        found.append({"name": "pixels", "median": f"{width[0]:,} × {height[0]:,}", "chart": None})
    columns.append(("bytes of an image", rows.table["image_bytes"].astype(np.int64), size))
    if (rows.table["text_bytes"] > 0).any():
        columns.append(("bytes of a caption", np.maximum(1, rows.table["text_bytes"].astype(np.int64)), size))
    for name, values, show in columns:
        low, middle, high = (show(float(value)) for value in (values.min(), np.median(values), values.max()))
        label = f"{name}: {low} to {high}, median {middle}"
        chart = svg_bars.histogram(values, label, show) if values.min() < values.max() else None
        found.append({"name": name, "median": middle, "chart": chart})
    return found


def _pixels(value: float) -> str:
    return f"{value:,.0f}"


def _classes(rows: Rows, manifest: Manifest) -> dict[str, Any] | None:
    """How the labels are spread; None where there are none."""
    labels = rows.table["label"].astype(np.int64)
    labelled = labels[labels >= 0]
    if not len(labelled) and not manifest.class_names:
        return None
    codes, found = np.unique(labelled, return_counts=True)
    counts = dict.fromkeys(range(len(manifest.class_names)), 0) | dict(zip(codes.tolist(), found.tolist(), strict=True))
    names = [class_name(manifest.class_names, label) for label in counts]
    table = sorted(zip(names, counts.values(), strict=True), key=lambda row: -row[1])
    values = [count for _, count in table]
    most = max(values)
    listed = [(name, count, count / max(1, most)) for name, count in table[:_LISTED_CLASSES]]
    in_order = list(zip(names, counts.values(), strict=True))[:_NAMED_CLASSES]
    each = f"{most:,}" if min(values) == most else f"{min(values):,} to {most:,}"
    label = f"{len(table):,} classes, images of each: {each}"
    return {
        "label": label,
        "num": len(table),
        "empty": sum(count == 0 for count in values),
        "unlabelled": len(labels) - len(labelled),
        "bars": [(name, count, count / max(1, most)) for name, count in in_order]
        if len(table) <= _NAMED_CLASSES
        else [],
        "chart": svg_bars.columns(
            [count for _, count, _ in listed],
            [name for name, _, _ in listed],
            label,
            {0: "largest", len(listed): "smallest"},
        ),
        "table": listed,
    }


def _facts(manifest: Manifest) -> dict[str, dict[str, str]]:
    """What the manifest says of itself, by heading."""
    origin = {key: manifest.provenance.get(key) for key in ("upstream", "licence", "citation")}
    encoder = dict(manifest.encoder or {})
    canary = encoder.pop("canary", None)
    versions = ", ".join(f"{key} {value}" for key, value in encoder.items())
    digests = {key: value for key, value in manifest.provenance.items() if key not in origin}
    groups: dict[str, Mapping[str, object]] = {
        "Where it comes from": origin,
        "How it is stored": {
            **{key: value for key, value in manifest.settings.items() if key != "encoder"},
            "members": ", ".join(manifest.members),
            "encoder": versions or "none: third-party tars, untouched",
        },
        "What it is": {
            "order_digest": manifest.order_digest,
            "content_digest": manifest.content_digest,
            **digests,
            "canary of the encoder": canary,
        },
    }
    return {
        heading: {key.replace("_", " "): str(value) for key, value in facts.items() if value not in (None, "")}
        for heading, facts in groups.items()
    }


def _mixture(mixture: Mixture) -> dict[str, Any]:
    """Every entry's share of the draws beside its share of the images."""
    stats = dataset_stats(mixture)
    total = sum(entry.num_samples for entry in mixture.entries)
    natural = {entry.name: entry.num_samples / total for entry in mixture.entries}
    return {
        "strategy": mixture.config.strategy,
        "epoch_samples": mixture.epoch_samples,
        "stats": stats,
        "natural": natural,
        "drawn_stack": svg_bars.stacked_bar(
            [(name, s.share or 0.0) for name, s in stats.items()], "shares of the draws"
        ),
        "natural_stack": svg_bars.stacked_bar(list(natural.items()), "shares of the images"),
    }
