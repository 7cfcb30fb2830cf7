"""Raw dataset -> shards: a pure function of (input list, settings, encoder).

    list, sorted -> shuffled under the build's seed -> slices of `samples_per_shard`; slice j is shard j

The slices are fixed in `.journal/plan.json` before any task runs; each finished shard leaves a record there; the
manifest is made from the records alone. So any number of workers and kills gives the same bytes, and running the same
command again does only what is missing. An image that no decoder reads is left out of its slice and named in the
manifest; nothing else moves.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hjepa_shards.config import flatten
from hjepa_shards.encode import (
    EXTENSIONS,
    JPEG_256,
    KEEP,
    PNG,
    EncodeSettings,
    encode,
    encoder_identity,
    require_encoder,
)
from hjepa_shards.errors import BuildMismatch, DecodeError, InputError
from hjepa_shards.files import exclusive, write_atomically
from hjepa_shards.manifest import FILE_NAME, Manifest, load_manifest, save_manifest, shard_pattern
from hjepa_shards.rng import derive_key, permutation
from hjepa_shards.sample import RawSample, encode_keys, extension_of, plain_key, sort_samples
from hjepa_shards.sources import SOURCES, open_split
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.writer import JOURNAL, Members, add_statistics, record_path, write_shard

DEFAULT_SHARD_MB = 180
_PROBED_SAMPLES = 256
_DEFAULT_SETTINGS = {"keep": KEEP, "png": PNG, "jpeg": JPEG_256}

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What a user may choose about a build."""

    settings: EncodeSettings | None = None
    """How pixels are stored; None: the source's default."""
    shard_mb: int = DEFAULT_SHARD_MB
    """Aimed size of a shard in MiB; only chooses samples_per_shard, once."""
    samples_per_shard: int | None = None
    seed: int = 0
    """Of the shuffle that decides which sample goes into which shard."""
    limit: int | None = None
    """Only the first samples of the sorted list."""
    classes: Path | None = None
    """A file with one class a line, in place of the published list (imagenet100)."""
    workers: int = 1


def build(
    source: str,
    *,
    raw: Path | None,
    out: Path,
    splits: Sequence[str] = (),
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> list[Manifest]:
    """Build `out/<source>/<split>` for each split (all that the raw data has, if none is named).

    Continues where a killed build stopped. InputError for a wrong folder or option, BuildMismatch where `out` holds
    a build with other settings, input or encoder.
    """
    options = options or BuildOptions()
    settings = options.settings or default_settings(source)
    require_encoder(settings)
    known = SOURCES[source]
    unknown = [split for split in splits if split not in known.splits]
    if unknown:
        raise InputError(f"{source} has no split {unknown[0]!r}; it has {', '.join(known.splits)}")
    for name in ("samples_per_shard", "limit", "workers", "shard_mb"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: a positive number expected, {value} found")
    opened = [
        (split, open_split(source, raw, split, classes=options.classes)) for split in splits or known.default_splits
    ]
    return [
        _build_split(source, split, raw_split, out / source / split, settings, options, progress)
        for split, raw_split in opened
    ]


def default_settings(source: str) -> EncodeSettings:
    """How a source's pixels are stored when nothing else is asked for."""
    if source not in SOURCES:
        raise InputError(f"no source named {source!r}; known: {', '.join(SOURCES)}")
    return _DEFAULT_SETTINGS[SOURCES[source].pixels]


def _build_split(
    source: str,
    split: str,
    raw: RawSplit,
    folder: Path,
    settings: EncodeSettings,
    options: BuildOptions,
    progress: Progress | None,
) -> Manifest:
    samples = sort_samples(raw.samples)[: options.limit]
    if not samples:
        raise InputError(f"{source} {split}: no images found in the raw data")
    keys = encode_keys(samples)
    try:
        (folder / JOURNAL).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}; choose another folder with --out") from error
    with exclusive(folder / JOURNAL, "another process is building here; wait for it to end"):
        plan = _fixed_plan(folder, source, split, raw, samples, settings, options)
        order = permutation(derive_key(options.seed, "build", source, split), len(samples))
        per_shard = plan["samples_per_shard"]
        members = Members(**plan["members"])
        num_shards = -(-len(samples) // per_shard)
        names = [shard_pattern(source, split) % shard for shard in range(num_shards)]
        slices = [order[shard * per_shard : (shard + 1) * per_shard] for shard in range(num_shards)]
        job = _Job(folder, raw, samples, keys, members, settings, plan["encoder"])
        todo = [shard for shard in range(num_shards) if not _is_finished(folder, names[shard])]
        if not todo and (folder / FILE_NAME).exists():
            return load_manifest(folder)
        _remove_leftovers(folder)
        done = len(samples) - sum(len(slices[shard]) for shard in todo)
        tasks = [(names[shard], slices[shard]) for shard in todo]

        def advance(num_samples: int) -> None:
            nonlocal done
            done += num_samples
            if progress:
                progress(done, len(samples))

        _run(job, tasks, options.workers, advance)
        records = [_read_journal(record_path(folder, name)) for name in names]
        manifest = _manifest_of(source, split, raw, plan, samples, keys, records)
        save_manifest(folder, manifest)
        return manifest


def _is_finished(folder: Path, name: str) -> bool:
    """Whether a shard was written and still stands; one that was removed since is written again."""
    record, path = record_path(folder, name), folder / name
    return record.exists() and path.exists() and path.with_name(f"{name}.index").exists()


# ---- the plan of a build, fixed before any task runs


def _fixed_plan(
    folder: Path,
    source: str,
    split: str,
    raw: RawSplit,
    samples: Sequence[RawSample],
    settings: EncodeSettings,
    options: BuildOptions,
) -> dict[str, Any]:
    """`.journal/plan.json`: read and compared if there is one, else made and written."""
    path = folder / JOURNAL / "plan.json"
    asked: dict[str, Any] = {
        "source": source,
        "split": split,
        "settings": settings.model_dump(),
        "seed": options.seed,
        "input_digest": _digest_of_list(samples, raw.class_names),
        "num_samples": len(samples),
        "encoder": encoder_identity(settings),
    }
    if options.samples_per_shard is not None:
        asked["samples_per_shard"] = options.samples_per_shard
    if path.exists():
        plan = _read_journal(path)
        before, now = flatten(plan), flatten(asked)
        differences = [
            f"{key}: {before.get(key)} before, {value} now" for key, value in now.items() if before.get(key) != value
        ]
        if differences:
            raise BuildMismatch(
                f"{folder}: holds a build made otherwise ({'; '.join(differences)}); build into another folder, "
                "or remove this one to start again"
            )
        return plan
    if any(folder.glob("*.tar")):
        raise BuildMismatch(f"{folder}: holds tars but no build journal; build into another folder")
    plan = asked | {
        "samples_per_shard": options.samples_per_shard or _samples_per_shard(raw, samples, settings, options),
        "members": {
            "image": _image_extension(samples, settings),
            "labels": any(sample.label >= 0 for sample in samples),
            "captions": any(sample.captions for sample in samples),
        },
    }
    write_atomically(path, json.dumps(plan, sort_keys=True, indent=1).encode())
    return plan


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BuildMismatch(
            f"{path}: not the JSON that was written; remove {path.parent.parent} to start again"
        ) from error


def _digest_of_list(samples: Sequence[RawSample], class_names: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        text = json.dumps([sample.name, sample.index, sample.label, sample.captions])
        digest.update(text.encode())
    digest.update(json.dumps(list(class_names)).encode())
    return digest.hexdigest()


def _samples_per_shard(
    raw: RawSplit, samples: Sequence[RawSample], settings: EncodeSettings, options: BuildOptions
) -> int:
    """Aimed bytes / mean encoded bytes of the first samples of the list, rounded to a multiple of 256."""
    sizes = []
    for sample in samples[:_PROBED_SAMPLES]:
        with contextlib.suppress(DecodeError):
            sizes.append(len(encode(raw.read(sample), settings).data))
    if not sizes:
        raise InputError(
            f"none of the first {min(len(samples), _PROBED_SAMPLES)} files can be decoded, "
            f"{samples[0].name} among them; is this a folder of images?"
        )
    target = options.shard_mb * 2**20 / np.mean(sizes)
    return max(256, round(target / 256) * 256)


def _image_extension(samples: Sequence[RawSample], settings: EncodeSettings) -> str:
    """One extension for a whole split; `keep` takes the commonest (readers go by magic bytes)."""
    if settings.pixels != "keep":
        return "jpg" if settings.pixels == "jpeg" else "png"
    stored = Counter(extension_of(sample.name).replace("jpeg", "jpg") for sample in samples)
    known = {extension: stored[extension] for extension in EXTENSIONS.values()}
    commonest = max(known, key=lambda extension: known[extension])
    return commonest if known[commonest] else "png"


# ---- running the tasks


@dataclass(frozen=True, slots=True)
class _Job:
    """What every shard task of a split shares."""

    folder: Path
    raw: RawSplit
    samples: list[RawSample]
    keys: list[str]
    members: Members
    settings: EncodeSettings
    encoder: dict[str, Any]

    def run(self, task: "_Task", on_sample: Callable[[], None]) -> None:
        name, indices = task
        chosen = [(self.keys[i], self.samples[i]) for i in indices.tolist()]
        write_shard(self.folder, name, self.raw, chosen, self.members, self.settings, on_sample)


_Task = tuple[str, np.ndarray]
_POLL_S = 0.2
_worker_job: _Job
_worker_done: Any


def _run(job: _Job, tasks: Sequence[_Task], workers: int, advance: Callable[[int], None]) -> None:
    """Run the tasks; `advance` hears how many samples were done since the last time."""
    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            job.run(task, lambda: advance(1))
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_start_worker, initargs=(job, counter)
    ) as pool:
        waiting = {pool.submit(_run_in_worker, task) for task in tasks}
        seen = 0
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                count = counter.value
                advance(count - seen)
                seen = count
        except BrokenProcessPool as error:
            raise InputError(
                f"{job.folder}: a worker process was killed (out of memory?); run the same command again, with fewer "
                "--workers if it was memory"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(job: _Job, counter: Any) -> None:
    global _worker_job, _worker_done
    _worker_job, _worker_done = job, counter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A build killed with -9 takes its workers along; they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(task: _Task) -> None:
    found = encoder_identity(_worker_job.settings)
    if found != _worker_job.encoder:
        raise BuildMismatch(
            f"this worker encodes as {found}, the build as {_worker_job.encoder}; give it the same libraries"
        )

    def count() -> None:
        with _worker_done.get_lock():
            _worker_done.value += 1

    _worker_job.run(task, count)


# ---- around the tasks


def _remove_leftovers(folder: Path) -> None:
    for path in [*folder.glob(".*.tmp"), *(folder / JOURNAL).glob(".*.tmp")]:
        path.unlink()


def _manifest_of(
    source: str,
    split: str,
    raw: RawSplit,
    plan: dict[str, Any],
    samples: Sequence[RawSample],
    keys: Sequence[str],
    records: Sequence[dict[str, Any]],
) -> Manifest:
    raw_digest = hashlib.blake2b("".join(r["raw_digest"] for r in records).encode(), digest_size=16)
    return Manifest(
        source=source,
        split=split,
        class_names=raw.class_names,
        class_groups=raw.class_groups,
        notes=raw.notes,
        members=Members(**plan["members"]).extensions(),
        shard_names=shard_pattern(source, split),
        shard_samples=np.array([r["samples"] for r in records], dtype=np.int64),
        shard_bytes=np.array([r["bytes"] for r in records], dtype=np.int64),
        shard_sha256=[r["sha256"] for r in records],
        index_sha256=[r["index_sha256"] for r in records],
        keys_digest=[r["keys_digest"] for r in records],
        encoder=plan["encoder"],
        settings={
            **plan["settings"],
            "samples_per_shard": plan["samples_per_shard"],
            "seed": plan["seed"],
        },
        provenance={
            "input_digest": plan["input_digest"],
            "raw_digest": raw_digest.hexdigest(),
            **raw.provenance.as_dict(),
        },
        exclusions=[exclusion for r in records for exclusion in r["exclusions"]],
        renamed={
            key: [sample.name, sample.index]
            for key, sample in zip(keys, samples, strict=True)
            if key != plain_key(sample.name)
        },
        statistics=add_statistics([r["statistics"] for r in records]),
    )
