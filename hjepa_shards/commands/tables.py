"""What several commands print or look for: built splits below a folder, their table, their remarks."""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_shards.shards.location import Place
    from hjepa_shards.shards.manifest import Manifest

DEFAULT_ROOT = "data/shards"


def splits_below(places: Sequence[str]) -> list["Place"]:
    """Every built split at or below some folders and URLs.

    InputError where there is none, a folder cannot be read, or a server does not answer.
    """
    from hjepa_shards.shards.location import splits_at_or_below
    from hjepa_shards.storage.remote_files import is_remote

    found: list[Place] = []
    for place in places:
        found += splits_at_or_below(place) if is_remote(place) else _folders_below(Path(place))
    if not found:
        raise _none_below(places)
    return found


def folders_below(folders: Sequence[str]) -> list[Path]:
    """The same for what reads the shards of this machine only. InputError for a URL, too."""
    from hjepa_shards.storage.remote_files import is_remote

    for folder in filter(is_remote, folders):
        raise InputError(
            f"{folder}: a folder of this machine expected, a URL found; `info` and `verify` take URLs, and so does the "
            "data.root of a run"
        )
    found = [inner for folder in folders for inner in _folders_below(Path(folder))]
    if not found:
        raise _none_below(folders)
    return found


def _none_below(places: Sequence[str]) -> InputError:
    from hjepa_shards.shards.manifest import FILE_NAME

    advice = "`hjepa-shards build` writes one, `hjepa-shards index` makes one for third-party tars"
    if any(place.startswith(("http://", "https://")) for place in places):
        advice += "; a web server that does not list its files wants the split itself: <root>/<source>/<split>"
    return InputError(f"{', '.join(places)}: no {FILE_NAME} here or below; {advice}")


def _folders_below(folder: Path) -> list[Path]:
    from hjepa_shards.shards.manifest import FILE_NAME

    return sorted(_below(folder, FILE_NAME))


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
        classes = str(len(manifest.class_names) or ("unnamed" if _is_labelled(folder, manifest) else "-"))
        table.add_row(
            escape(str(folder)),
            f"{manifest.num_samples:,}",
            f"{manifest.num_shards:,}",
            size(int(manifest.shard_bytes.sum())),
            classes,
            f"{len(manifest.exclusions):,}",
        )
    console.print(table)


def _is_labelled(place: str | Path, manifest: "Manifest") -> bool:
    from hjepa_shards.shards.location import is_labelled

    return is_labelled(place, manifest)


def print_next(*commands: str, when: str = "") -> None:
    """What a user would type next, ready to be copied."""
    before = f"next, {when}: " if when else "next: "
    for number, command in enumerate(commands):
        line = f"{' ' * len(before) if number else before}{command}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def commands_for(built: Sequence[tuple[str, "Manifest"]]) -> list[str]:
    """What a user would type next about built splits: look at them, and train on them.

    built: folders or URLs, one or more, and what is there.
    """
    where, manifest = next((pair for pair in built if pair[1].split == "train"), built[0])
    below = f"/{manifest.source}/{manifest.split}"
    root = where.removesuffix(below)
    if root == where:  # not where a mixture would look
        return [f"hjepa-shards info {shlex.quote(where)}"]
    name = manifest.source if manifest.split == "train" else f"{manifest.source}:{manifest.split}"
    option = "" if root == DEFAULT_ROOT else f" --root {shlex.quote(root)}"
    return [
        f"hjepa-shards info {shlex.quote(where if len(built) == 1 else f'{root}/{manifest.source}')}",
        f"hjepa-shards mix --source {name}=1{option} --out mix.yaml",
    ]


def print_remarks(manifest: "Manifest", most: int = 10) -> None:
    """Notes and exclusions of a split."""
    for note in manifest.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    for exclusion in manifest.exclusions[:most]:
        console.print(f"[yellow]excluded[/yellow] {escape(exclusion['name'])}: {escape(exclusion['reason'])}")
    if len(manifest.exclusions) > most:
        console.print(f"... and {len(manifest.exclusions) - most} more, all in the manifest")
