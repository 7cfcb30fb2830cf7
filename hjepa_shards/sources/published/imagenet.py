"""ImageNet, whole or filtered by a class list; ImageNet-100 is the published list of CMC.

It is read as it is: folders of synsets, all validation files in one folder, or the official tars. A sample has the
same name, <synset>/<file>, and so the same shard in each of them. A label is the index in the sorted list of chosen
synsets: for all 1,000 this is the usual numbering.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import final

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.raw_sample import RawSample, extension_of
from hjepa_shards.sources.base import Provenance, RawSplit, Source, raw_folder
from hjepa_shards.sources.formats.class_folders import entries
from hjepa_shards.sources.formats.image_files import FolderFiles, RawFiles, TarFiles
from hjepa_shards.sources.formats.tar_members import TarMember, tar_members
from hjepa_shards.sources.published.imagenet_val import SYNSET, FlatVal, val_synsets

_UNPACKED = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where Kaggle's archive has train/ and val/."""
_ADVICE = (
    "register at https://image-net.org/download.php, fetch ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar and "
    "give the folder that holds the two; or unpack them to train/<synset>/*.JPEG and val/, and give the folder that "
    "holds train and val"
)
_LAYOUT = "train/<synset>/*.JPEG, val/[<synset>/]*.JPEG, or ILSVRC2012_img_{train,val}.tar"
_PROVENANCE = Provenance(
    upstream="ILSVRC 2012, https://image-net.org",
    licence="terms of access of image-net.org: research and education, not commercial",
    citation="O. Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
)
_SCANNING_THREADS = 8
"""They wait for the disk; the inner tars are far apart."""
_VAL_IMAGES_A_CLASS = 50


@final
class SynsetSplit(RawSplit):
    """The images of some synsets, whatever else the files hold. Bytes are read as they are."""

    provenance = _PROVENANCE

    def __init__(self, files: RawFiles, synsets: tuple[str, ...], published: int | None) -> None:
        """files: named <synset>/<file>. published: number of images that there should be, where it is known."""
        self.files = files
        self.synsets = synsets
        self.class_names = tuple(map(_class_name, synsets))
        self.published = published

    @property
    def notes(self) -> tuple[str, ...]:
        empty = self.samples.empty_classes(self.synsets)
        notes = [f"classes without an image: {', '.join(empty)}"] if empty else []
        if self.published not in (None, len(self.samples)):
            notes.append(f"{len(self.samples):,} images found, {self.published:,} were published")
        return tuple(notes)

    def list_samples(self) -> Iterator[RawSample]:
        labels = {synset: label for label, synset in enumerate(self.synsets)}
        none = True
        for name, extent in self.files.members():
            if (synset := name.partition("/")[0]) in labels:
                none = False
                yield RawSample(name=name, index=0, label=labels[synset], extent=extent)
        if none:
            raise InputError(f"{self.files.where}: images expected, none found; is it the right folder?")

    def read(self, sample: RawSample) -> bytes:
        return self.files.read(sample.name, sample.extent)

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        return (self.files.path(sample.name) for sample in samples)


@cache
def synset_names() -> dict[str, str]:
    """Synset -> its words, of the 1,000 of ILSVRC 2012."""
    return dict(line.split("\t") for line in _shipped("imagenet1000.tsv"))


def read_classes(path: Path) -> tuple[str, ...]:
    """The synsets of a class list, sorted: one a line, whatever follows it is ignored, `#` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a list of synsets expected, cannot be read: {error}") from error
    synsets: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not SYNSET.fullmatch(words[0]):
            raise InputError(f"{path}, line {number}: a synset such as n01440764 expected, {words[0]!r} found")
        if words[0] in synsets:
            raise InputError(f"{path}, line {number}: {words[0]} again, first on line {synsets[words[0]]}; remove one")
        synsets[words[0]] = number
    if not synsets:
        raise InputError(f"{path}: synsets expected, one a line, none found")
    return tuple(sorted(synsets))


def _open(
    shipped: str, published: Mapping[str, int], raw: Path | None, split: str, classes: Path | None
) -> SynsetSplit:
    synsets = read_classes(classes) if classes else tuple(line.split()[0] for line in _shipped(shipped))
    files, found = _opened(raw, split, synsets)
    missing = [synset for synset in synsets if synset not in found]
    if missing:
        shown = ", ".join(_class_name(synset) for synset in missing[:5])
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise InputError(
            f"{files.where}: {len(synsets):,} classes expected, {len(synsets) - len(missing):,} of them found; "
            f"missing: {shown}{more}; {_ADVICE}, or choose what you have with --classes FILE"
        )
    own = _VAL_IMAGES_A_CLASS * len(synsets) if split == "val" else None
    return SynsetSplit(files, synsets, own if classes else published[split])


def _opened(raw: Path | None, split: str, synsets: tuple[str, ...]) -> tuple[RawFiles, set[str]]:
    """The images of a split as <synset>/<file>, wherever they are, and the synsets that there are."""
    name = f"ILSVRC2012_img_{split}.tar"
    unpacked = raw is not None and any((raw / inner / split).is_dir() for inner in ("", *_UNPACKED))
    if raw is not None and not unpacked and (raw / name).is_file():
        if split == "val":
            return _flat(TarFiles(raw / name), [raw])
        return _packed(raw / name, synsets)
    folder = raw_folder(raw, _UNPACKED, (split,), f"{name} would do as well; {_ADVICE}" if raw else _ADVICE)
    found = entries(folder / split)
    folders = {entry.name for entry in found if entry.is_dir()}
    loose = [entry.name for entry in found if extension_of(entry.name) and entry.name not in folders]
    if split != "val" or not loose:
        return FolderFiles(folder / split, [synset for synset in synsets if synset in folders]), folders
    if folders:
        raise InputError(
            f"{folder / split}: all files in one folder, or one folder a synset, expected; {len(loose):,} files "
            f"({loose[0]} the first) and {len(folders):,} folders found; finish moving them, or unpack them again"
        )
    return _flat(FolderFiles(folder / split), [folder, raw or folder])


def _flat(files: RawFiles, folders: Iterable[Path]) -> tuple[RawFiles, set[str]]:
    flat = FlatVal(files, val_synsets(folders, tuple(synset_names())))
    return flat, {name.partition("/")[0] for name in flat.names()}


def _packed(path: Path, synsets: tuple[str, ...]) -> tuple[RawFiles, set[str]]:
    """The training tar: a tar with a tar of images for each synset."""
    inner = {member.name.removesuffix(".tar"): member for member in tar_members(path) if member.name.endswith(".tar")}
    if not inner:
        raise ShardError(f"{path}: a tar of tars, as n01440764.tar, expected, none of them in it; fetch it again")
    chosen = {synset: inner[synset] for synset in synsets if synset in inner}
    return TarFiles(path, partial(_members_of, chosen)), set(inner)


def _members_of(inner: Mapping[str, TarMember], path: Path) -> Iterator[TarMember]:
    """The files of the inner tars as <synset>/<file>."""

    def scan(synset: str) -> list[TarMember]:
        _, start, num_bytes = inner[synset]
        members = tar_members(path, start, start + num_bytes)
        return [TarMember(f"{synset}/{member.name}", member.offset, member.num_bytes) for member in members]

    with ThreadPoolExecutor(_SCANNING_THREADS) as threads:
        for members in threads.map(scan, inner):
            yield from members


def _class_name(synset: str) -> str:
    return f"{synset} {synset_names()[synset]}" if synset in synset_names() else synset


def _shipped(name: str) -> list[str]:
    return resources.files("hjepa_shards.sources.published").joinpath(name).read_text(encoding="utf-8").splitlines()


IMAGENET = Source(
    name="imagenet",
    description="ILSVRC 2012: photographs of a thousand kinds of things",
    layout=_LAYOUT,
    classes="1,000",
    images="train 1,281,167, val 50,000 of about 500x375",
    download="manual",
    splits=("train", "val"),
    default_splits=("train", "val"),
    pixels="jpeg",
    takes_classes=True,
    open=partial(_open, "imagenet1000.tsv", {"train": 1_281_167, "val": 50_000}),
)
IMAGENET100 = Source(
    name="imagenet100",
    description="a hundred classes of ImageNet: the published list, or your own with --classes FILE",
    layout=_LAYOUT,
    classes="100",
    images="train 126,689, val 5,000 of about 500x375",
    download="manual",
    splits=("train", "val"),
    default_splits=("train", "val"),
    pixels="jpeg",
    takes_classes=True,
    open=partial(_open, "imagenet100.txt", {"train": 126_689, "val": 5_000}),
)
