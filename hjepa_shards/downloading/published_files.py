"""What each source consists of on the internet, and how it gets into a folder that `build` reads.

Addresses are those of torchvision's dataset classes, and COCO's own. Every file has a sha256: the authors publish md5
or nothing, so these are the digests that Keras, TensorFlow Datasets and torchvision's prototypes check. Therefore a
mirror needs no trust, and neither does plain http, which is how most of these hosts are addressed.

An archive that `build` reads in place (the tars of Places365) stays as it is, with <file>.sha256 beside it, in the
format of sha256sum, as the sign that it was checked. The others are unpacked and removed.
"""

import difflib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hjepa_shards.base.atomic_files import exclusive, write_atomically, writing
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.registry import SOURCES
from hjepa_shards.storage.http_download import PATIENT, SILENT, Patience, Watcher, digest_of, fetch
from hjepa_shards.storage.safe_unpack import is_unpacked, unpack

_SLACK = 2
"""This many times `unpacked_bytes` may come out of an archive before it counts as a bomb."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One published file."""

    url: str
    num_bytes: int
    is_exact: bool = True
    """Whether num_bytes is the file's size; else it is the rounded one of the web page."""
    sha256: str
    md5: str = ""
    """Where the web page shows it and the user may want to compare."""
    splits: tuple[str, ...]
    """Of the source, that need it."""
    unpacks_to: tuple[str, ...] = ()
    """What it holds; empty: it is read as it is."""
    unpacked_bytes: int = 0
    """About."""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_CSAIL = "http://data.csail.mit.edu/places/places365/"
_COCO = "http://images.cocodataset.org/"

_PLACES_LISTS = (
    RemoteFile(
        url=_CSAIL + "filelist_places365-standard.tar",
        num_bytes=67_498_496,
        sha256="520699e00d69b63ddc29fac54645aa00ce1c10ca42e288960aa1cf791d6e9aa9",
        splits=("train", "val", "test"),
        unpacks_to=("categories_places365.txt", *(f"places365_{s}.txt" for s in ("train_standard", "val", "test"))),
        unpacked_bytes=67_500_000,
    ),
    RemoteFile(
        url=_CSAIL + "filelist_places365-challenge.tar",
        num_bytes=300_000_000,
        is_exact=False,
        sha256="9821d8140c77e84bbed92ead80a14c74a2c3a24a1fe7738875b4e318d7655c36",
        splits=("train-challenge",),
        unpacks_to=("categories_places365.txt", "places365_train_challenge.txt"),
        unpacked_bytes=300_000_000,
    ),
)

DOWNLOADS: dict[str, tuple[RemoteFile, ...]] = {
    "cifar10": (
        RemoteFile(
            url=_TORONTO + "cifar-10-python.tar.gz",
            num_bytes=170_498_071,
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            splits=("train", "test"),
            unpacks_to=("cifar-10-batches-py",),
            unpacked_bytes=186_214_026,
        ),
    ),
    "cifar100": (
        RemoteFile(
            url=_TORONTO + "cifar-100-python.tar.gz",
            num_bytes=169_001_437,
            sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            splits=("train", "test"),
            unpacks_to=("cifar-100-python",),
            unpacked_bytes=186_300_000,
        ),
    ),
    "stl10": (
        RemoteFile(
            url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            num_bytes=2_640_397_119,
            sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
            splits=("train", "test", "unlabeled"),
            unpacks_to=("stl10_binary",),
            unpacked_bytes=3_124_300_000,
        ),
    ),
    "places365": (
        *_PLACES_LISTS,
        RemoteFile(
            url=_CSAIL + "train_large_places365standard.tar",
            num_bytes=113_000_000_000,
            is_exact=False,
            sha256="dd232ce786836fcb0aa6d30032a95de095e79ed9ff08faeb16309a89eb8f3c97",
            splits=("train",),
        ),
        RemoteFile(
            url=_CSAIL + "val_large.tar",
            num_bytes=2_300_000_000,
            is_exact=False,
            sha256="ddd71c418592a4c230645e238f9e52de77247461d68cd9a14a080a9ca6f27df6",
            splits=("val",),
        ),
        RemoteFile(
            url=_CSAIL + "test_large.tar",
            num_bytes=20_500_000_000,
            is_exact=False,
            sha256="4fae1d859035fe800a7697c27e5e69d78eb292d4cf12d84798c497b23b46b8e1",
            splits=("test",),
        ),
        RemoteFile(
            url=_CSAIL + "train_large_places365challenge.tar",
            num_bytes=512_000_000_000,
            is_exact=False,
            sha256="f5ddac4de01865a89768ffe066b8f1abb4f0d7a39cd06770aea0a49e3996d91f",
            splits=("train-challenge",),
        ),
    ),
    "places365-small": (
        *_PLACES_LISTS,
        RemoteFile(
            url=_CSAIL + "train_256_places365standard.tar",
            num_bytes=26_103_685_120,
            sha256="0ade5d7d38c682aa0203014a2b99ad3bf608bf1de0f151dc0d80efba54660a0a",
            splits=("train",),
        ),
        RemoteFile(
            url=_CSAIL + "val_256.tar",
            num_bytes=525_158_400,
            sha256="24b4e639ef12a0012af525bc4cb443e4ab4aaea8369a1fb009b70e4a4aad5d48",
            splits=("val",),
        ),
        RemoteFile(
            url=_CSAIL + "test_256.tar",
            num_bytes=4_736_829_440,
            sha256="037ee8180369bdde46636341b92900d4bcb8ea000c026a1fd3e0e9827a8702a1",
            splits=("test",),
        ),
        RemoteFile(
            url=_CSAIL + "train_256_places365challenge.tar",
            num_bytes=116_000_000_000,
            is_exact=False,
            sha256="250d25cf7da1e69df2470bbc635571728b98301f52eb12ea5f21ca899911666a",
            splits=("train-challenge",),
        ),
    ),
    "coco": (
        RemoteFile(
            url=_COCO + "annotations/annotations_trainval2017.zip",
            num_bytes=252_907_541,
            sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            splits=("train", "val"),
            unpacks_to=("annotations/captions_train2017.json", "annotations/captions_val2017.json"),
            unpacked_bytes=835_000_000,
        ),
        RemoteFile(
            url=_COCO + "zips/val2017.zip",
            num_bytes=815_585_330,
            sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            splits=("val",),
            unpacks_to=("val2017",),
            unpacked_bytes=830_000_000,
        ),
        RemoteFile(
            url=_COCO + "zips/train2017.zip",
            num_bytes=19_336_861_798,
            sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            splits=("train",),
            unpacks_to=("train2017",),
            unpacked_bytes=19_600_000_000,
        ),
    ),
}
"""By source, in the order in which they are fetched: what is small, and would fail soonest, first."""

IMAGENET = (
    RemoteFile(
        url="https://image-net.org/data/ILSVRC/2012/ILSVRC2012_img_train.tar",
        num_bytes=147_897_477_120,
        sha256="b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
        md5="1d675b47d978889d74fa0da5fadfb00e",
        splits=("train",),
    ),
    RemoteFile(
        url="https://image-net.org/data/ILSVRC/2012/ILSVRC2012_img_val.tar",
        num_bytes=6_744_924_160,
        sha256="c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
        md5="29b22e2961454d5413ddabcf34fc5622",
        splits=("val",),
    ),
)
"""Not fetched: a user who wants them has to agree to ImageNet's terms first."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What a download takes of a disk, in bytes."""

    to_fetch: int
    at_most: int
    """More than now, on the way: archives are kept beside what comes out of them."""
    in_the_end: int
    """More than now."""
    free: int


def download(
    source: str,
    raw: Path,
    *,
    splits: Sequence[str] = (),
    small: bool = False,
    keep_archives: bool = False,
    force: bool = False,
    url_base: str | None = None,
    patience: Patience = PATIENT,
    watcher: Watcher = SILENT,
) -> list[Path]:
    """The files of a source, fetched, checked and unpacked below `raw`; returns what is there then.

    Killed? The same call continues. What is there already costs no network.

    splits: as of `build`; none: its default ones.  small: the small edition of the images (Places365).
    keep_archives: what was unpacked stays beside what came out of it.
    force: fetch again what is there already; the old files go when the new ones are found right.
    url_base: a mirror: a folder that has the files under their own names.
    patience: tries and seconds between them, for a server that breaks off.  watcher: receives how far it is.
    InputError where the server or the disk do not give what is needed, ShardError where the bytes are not right.
    """
    files = _chosen(source, splits, small)
    with writing(raw):
        raw.mkdir(parents=True, exist_ok=True)
    with exclusive(raw, "another process is downloading here; wait for it to end"):
        space = space_needed(source, raw, splits=splits, small=small, keep_archives=keep_archives, force=force)
        if space.at_most > space.free:
            raise InputError(
                f"{raw}: {space.at_most / 1e9:,.2f} GB needed on the way and {space.in_the_end / 1e9:,.2f} GB in the "
                f"end, {space.free / 1e9:,.2f} GB free; make room or choose another folder with --raw"
            )
        for file in files:
            if not force and _is_there(file, raw):
                watcher.note(f"{file.name}: there already")
            else:
                _bring(file, raw, force, url_base, patience, watcher)
                if file.unpacks_to and not keep_archives:
                    (raw / file.name).unlink()
    return sorted({raw / (name.partition("/")[0]) for file in files for name in file.unpacks_to or (file.name,)})


def space_needed(
    source: str,
    raw: Path,
    *,
    splits: Sequence[str] = (),
    small: bool = False,
    keep_archives: bool = False,
    force: bool = False,
) -> Space:
    """What `download` with the same arguments would take now, after what it did already."""
    fetched = used = peak = 0
    for file in _chosen(source, splits, small):
        is_there = _is_there(file, raw)
        if force or not is_there:
            archive = 0 if force else _num_bytes(raw / file.name)
            missing = max(0, file.num_bytes - archive - _num_bytes(raw / f"{file.name}.part"))
            fetched += missing
            used += missing + file.unpacked_bytes
            peak = max(peak, used)
            used -= 0 if keep_archives or not file.unpacks_to else file.num_bytes
            used -= (file.unpacked_bytes if file.unpacks_to else file.num_bytes) if is_there else 0
    nearest = next(folder for folder in (raw.absolute(), *raw.absolute().parents) if folder.is_dir())
    return Space(to_fetch=fetched, at_most=peak, in_the_end=max(0, used), free=shutil.disk_usage(nearest).free)


def imagenet_instructions(source: str, raw: Path) -> str:
    """How a user gets ImageNet, and where to put it."""
    files = "\n".join(
        f"       {file.name:26}{file.num_bytes:>16,} bytes   md5 {file.md5}   for split {file.splits[0]}"
        for file in IMAGENET
    )
    return (
        "ImageNet is given to those who agree to its terms (research and education, not commercial), so you fetch it:\n"
        "\n"
        "    1. Register at https://image-net.org/signup, with an address of your university or company; log in.\n"
        "    2. From https://image-net.org/challenges/LSVRC/2012/2012-downloads.php fetch\n"
        f"{files}\n"
        "       `wget -c LINK` continues after a break. ImageNet-100 is a part of these; there is nothing smaller.\n"
        f"    3. Put both into {raw} and leave them packed: they are read as they are. The tree that\n"
        "       Kaggle has (train/<synset>/*.JPEG, and val/<synset>/*.JPEG or all of val in one folder) serves too.\n"
        "    4. Look whether they are right, then build:\n"
        f"       hjepa-shards verify-raw {source} --raw {raw}\n"
        f"       hjepa-shards build {source} --raw {raw}\n"
    )


def has_small_edition(source: str) -> bool:
    return f"{source}-small" in DOWNLOADS


def _chosen(source: str, splits: Sequence[str], small: bool) -> tuple[RemoteFile, ...]:
    """The files of these splits. InputError where there is nothing to fetch."""
    edition = f"{source}-small" if small else source
    if edition not in DOWNLOADS:
        known = ", ".join(sorted(DOWNLOADS.keys() & SOURCES.keys()))
        what = "has no small edition (places365 has)" if small and source in DOWNLOADS else "cannot be downloaded"
        nearest = difflib.get_close_matches(source, set(SOURCES) - {source}, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest and source not in SOURCES else f"known: {known}"
        raise InputError(f"{source}: {what}; {advice}")
    files = DOWNLOADS[edition]
    wanted = set(splits or SOURCES[source].default_splits)
    known_splits = {split for file in files for split in file.splits}
    if unknown := sorted(wanted - known_splits):
        raise InputError(
            f"{source}: split {unknown[0]!r} cannot be downloaded; known: {', '.join(sorted(known_splits))}"
        )
    return tuple(file for file in files if wanted & set(file.splits))


def _is_there(file: RemoteFile, raw: Path) -> bool:
    """Whether it is ready for `build`; said without reading it."""
    path = raw / file.name
    if file.unpacks_to:
        return is_unpacked(path, file.unpacks_to)
    sign = _sign(path)
    return path.exists() and sign.exists() and sign.read_text(errors="replace").startswith(file.sha256)


def _sign(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _bring(
    file: RemoteFile, raw: Path, force: bool, url_base: str | None, patience: Patience, watcher: Watcher
) -> None:
    path = raw / file.name
    if path.exists() and not force:
        _check_archive(file, path, watcher)
    else:
        url = f"{url_base.rstrip('/')}/{file.name}" if url_base else file.url
        num_bytes = file.num_bytes if file.is_exact else None
        fetch(url, path, num_bytes=num_bytes, sha256=file.sha256, patience=patience, watcher=watcher)
    if file.unpacks_to:
        progress = watcher.bar(f"unpack {file.name}")
        most_bytes = _SLACK * file.unpacked_bytes
        unpack(path, names=file.unpacks_to, most_bytes=most_bytes, progress=progress, replace=force)
    else:
        write_atomically(_sign(path), f"{file.sha256}  {file.name}\n".encode())


def _check_archive(file: RemoteFile, path: Path, watcher: Watcher) -> None:
    """An archive that is there: left by a run that was killed while unpacking, or put there by the user."""
    found = digest_of(path, "sha256", watcher.bar(f"check {file.name}"))
    if found != file.sha256:
        raise ShardError(
            f"{path}: {file.num_bytes:,} bytes with sha256 {file.sha256} expected, {_num_bytes(path):,} with {found} "
            "found; remove it and run this again"
        )


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
