"""What several commands print or look for: built splits below a folder, their table, their remarks."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_shards.shards.manifest import Manifest


def splits_below(folders: list[Path]) -> list[Path]:
    """Every folder with a manifest, here or below. InputError where there is none, or a folder cannot be read."""
    from hjepa_shards.shards.manifest import FILE_NAME

    found = [inner for folder in folders for inner in sorted(_below(folder, FILE_NAME))]
    if not found:
        names = ", ".join(str(folder) for folder in folders)
        raise InputError(
            f"{names}: no {FILE_NAME} here or below; `hjepa-shards build` writes one, `hjepa-shards index` makes one "
            "for third-party tars"
        )
    return found


def _below(folder: Path, file_name: str) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for inner, inside, names in os.walk(folder, onerror=refuse, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]  # a killed command's
        if file_name in names:
            yield Path(inner)


def print_manifests(found: Iterable[tuple[str | Path, "Manifest"]]) -> None:
    """A line a split, with its folder or URL."""
    table = Table("split", "samples", "shards", "bytes", "classes", "excluded")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for folder, manifest in found:
        table.add_row(
            escape(str(folder)),
            f"{manifest.num_samples:,}",
            f"{manifest.num_shards:,}",
            size(int(manifest.shard_bytes.sum())),
            str(len(manifest.class_names) or "-"),
            f"{len(manifest.exclusions):,}",
        )
    console.print(table)


def print_remarks(manifest: "Manifest", most: int = 10) -> None:
    """Notes and exclusions of a split."""
    for note in manifest.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    for exclusion in manifest.exclusions[:most]:
        console.print(f"[yellow]excluded[/yellow] {escape(exclusion['name'])}: {escape(exclusion['reason'])}")
    if len(manifest.exclusions) > most:
        console.print(f"... and {len(manifest.exclusions) - most} more, all in the manifest")
