"""A split at a URL, verified: each shard and its index come into a temporary folder, are looked at there, and go.

So the same code judges them as in a folder, `--deep` too. The disk holds as many shards at a time as there are threads.
Compressed shards count as what they are when plain, which is what the manifest describes.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import final

from hjepa_shards.base.atomic_files import writing
from hjepa_shards.base.thread_map import in_threads
from hjepa_shards.errors import ShardError
from hjepa_shards.shards.location import STORED_FORMS, manifest_at
from hjepa_shards.shards.manifest import FILE_NAME, Manifest
from hjepa_shards.storage.build_output import JOURNAL
from hjepa_shards.storage.decompress import inflated
from hjepa_shards.storage.remote_files import remote_below, remote_bytes, remote_exists, remote_info
from hjepa_shards.verifying.verify_images import Contents, Finding
from hjepa_shards.verifying.verify_split import Files, Problem, Progress, unknown_files

_ADVICE = "upload it again"


def verify_remote(url: str, progress: Progress | None = None, workers: int = 1, *, deep: bool = False) -> list[Problem]:
    """Everything that is wrong with the split at `url`; empty when all is well.

    progress: receives (bytes done, bytes in all).  workers: threads, each of which has a shard on the disk.
    deep: also decode every image and compare rows with tars, as `verify_deep`.
    ManifestError, InputError where there is no manifest to judge by, or the server does not answer.
    """
    manifest = manifest_at(url)
    shards = _Shards(url.rstrip("/"), manifest, deep)
    total, done = int(manifest.shard_bytes.sum()), 0
    problems: list[Problem] = []
    for shard, found in enumerate(in_threads(shards.problems_of, range(manifest.num_shards), workers)):
        problems += found
        done += int(manifest.shard_bytes[shard])
        if progress:
            progress(done, total)
    names = [name.rpartition("/")[2] for name in remote_below(url) if name.rpartition("/")[0] == url.rstrip("/")]
    return problems + [replace(problem, path=f"{url}/{problem.name}") for problem in unknown_files(names, manifest)]


def unfinished_below(url: str) -> list[Problem]:
    """Unfinished builds at or below a URL; none where its server cannot list."""
    files = remote_below(url)
    marked = sorted({name.partition(f"/{JOURNAL}/")[0] for name in files if f"/{JOURNAL}/" in name})
    what = f"no {FILE_NAME}: an unfinished build; run the same `hjepa-shards build` to its end"
    return [Problem(path=folder, what=what) for folder in marked if f"{folder}/{FILE_NAME}" not in files]


@final
class _Shards:
    """The shards of one split at a URL."""

    def __init__(self, url: str, manifest: Manifest, deep: bool) -> None:
        self.url, self.manifest, self.deep = url, manifest, deep

    def problems_of(self, shard: int) -> list[Problem]:
        """Of the shard and its index, named by their URLs."""
        with tempfile.TemporaryDirectory(prefix="hjepa-verify-") as scratch:
            folder, name = Path(scratch), self.manifest.shard_name(shard)
            try:
                self._fetch(name, folder, STORED_FORMS)
                self._fetch(f"{name}.index", folder, ("",))
            except ShardError as error:  # cut short or damaged in its compression: what came of it is judged
                said = [Problem(path=f"{self.url}/{name}", what=f"{error}; {_ADVICE}", shard=shard)]
            else:
                said = []
            problems = said or Files(folder, self.manifest, advice=_ADVICE).problems_of(shard)
            if self.deep and not problems:
                contents = Contents(folder, self.manifest)
                findings: list[Finding] = [one for task in contents.tasks(shard) for one in task()[2]]
                problems = list(contents.problems_of(shard, findings))
            return [replace(problem, path=f"{self.url}/{problem.name}") for problem in problems]

    def _fetch(self, name: str, folder: Path, forms: tuple[str, ...]) -> None:
        """A file in the first of the forms that is there; nothing where none is."""
        for form in forms:
            url = f"{self.url}/{name}{form}"
            if remote_exists(url):
                with writing(folder / name), (folder / name).open("wb") as file:
                    for chunk in self._plain(url, form):
                        file.write(chunk)
                return

    def _plain(self, url: str, form: str) -> Iterator[bytes]:
        chunks = remote_bytes(url, remote_info(url)[0])
        return inflated(chunks, url) if form else chunks
