"""Third-party tars, in WebDataset's layout, as raw input of a build.

Members of one key (the name up to the first dot of its last part) are one sample, wherever in their tar they are: an
image, a class in .cls, captions in .txt and .json. What real tars hold is settled by rule, and counted in the notes:

    several images in a sample      the first of jpg, jpeg, png, webp, bmp, gif, tif, tiff; or the one of --image
    a member twice                  the later one, as unpacking would leave it
    a key in two tars               the tar's name joins the sample's: <tar>/<key>.jpg
    no image, or a huge one         the sample is excluded by name; if none has one, the error says what they have
    a hard link                     what it names, if that is before it in the tar; another link is not followed
    something after the end mark    read if it is a tar, else noted
    hidden names, such as ._x.jpg   passed over, as webdataset does
    .cls                            a class number (11.0 is 11); if any of them is no number, all are class names
"""

import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, final

from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.shards.class_names import class_number, one_name, require_distinct
from hjepa_shards.shards.raw_sample import Extent, RawSample
from hjepa_shards.shards.tar import split_name
from hjepa_shards.shards.tar_headers import TarEntry, entry_at, relative, tar_entries
from hjepa_shards.sources.base import Provenance, RawSplit, Remarks, Source
from hjepa_shards.sources.formats.captions import captions_in, label_in
from hjepa_shards.sources.formats.split_from_name import of_split
from hjepa_shards.sources.formats.tar_archives import Archive, default_scratch, look_at, make_copies, plain_tar
from hjepa_shards.sources.formats.tar_members import read_member
from hjepa_shards.sources.formats.tar_patterns import expand, tars_in
from hjepa_shards.sources.formats.tar_samples import (
    ImagesByName,
    companion,
    image_member,
    images_among,
    likely_images,
    readable,
    remark_at,
)
from hjepa_shards.sources.formats.tar_table import TarSample, TarTable
from hjepa_shards.storage.remote_files import is_remote

CLASS_NAMES_FILE = "classnames.txt"

_MAX_IMAGE_BYTES = 1 << 30
_NO_IMAGE = -1
"""In place of a number of bytes: the offset is that of a header that says why there is no image."""
_MAX_TEXT_BYTES = 1 << 20


@final
class TarSplit(RawSplit):
    """The samples of some tars. The index of a sample is its position in them: tars by name, then as they are there."""

    provenance = Provenance(upstream="tars written by somebody else", licence="not stated", citation="")

    def __init__(self, archives: tuple[Archive, ...], classes: tuple[str, ...] = ()) -> None:
        """classes: names of the labels, in their order; none: what .cls says."""
        self.archives = archives
        self.classes = classes
        self.scratch: Path | None = None

    def choose_image(self, member: str) -> None:
        self.image = image_member(member)

    def prepare(self, scratch: Path) -> None:
        self.scratch = scratch
        make_copies(self.archives, scratch)

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # known once the tars were read
        return self.classes or self._names_in_cls

    @property
    def notes(self) -> tuple[str, ...]:
        found, remarks = self._found
        count, first = found.unlabelled()
        if not 0 < count < len(found):
            return remarks.lines()
        return (*remarks.lines(), f"{count:,} samples without a class (.cls); the first: {first}")

    def list_samples(self) -> Iterator[RawSample]:
        found, _ = self._found
        if not len(found):
            raise InputError(f"{self.archives[0].location}: samples expected, none found in {len(self.archives)} tars")
        if not found.has_images() and (said := self._likely.error(self._where, len(found), self.image)):
            raise InputError(said)
        for number, sample, several in found.rows():
            name = f"{sample.key}.{sample.extension}" if sample.extension else sample.key
            extent = None
            if sample.offset is not None and sample.num_bytes is not None:
                extent = Extent(sample.tar, sample.offset, sample.num_bytes)
            yield RawSample(
                name=f"{self.archives[sample.tar].stem}/{name}" if several else name,
                index=number,
                label=self._label(sample),
                captions=tuple(json.loads(sample.captions)) if sample.captions else (),
                extent=extent,
            )

    def forget_list(self) -> None:
        _ = self._names_in_cls  # what the manifest needs is made from the list
        super().forget_list()
        vars(self).pop("_found", None)
        vars(self).pop("_likely", None)

    def read(self, sample: RawSample) -> bytes:
        if sample.extent is None:
            raise DecodeError("no image among its members")
        tar, offset, num_bytes = sample.extent
        if num_bytes == _NO_IMAGE:
            raise DecodeError(_why_no_image(entry_at(self._plain(tar), offset)))
        if num_bytes > _MAX_IMAGE_BYTES:
            raise DecodeError(f"an image of more than {_MAX_IMAGE_BYTES:,} bytes")
        return read_member(self._plain(tar), sample.name, offset, num_bytes)

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        return (Path(archive.location) for archive in self.archives if not is_remote(archive.location))

    def _plain(self, tar: int) -> Path:
        """The tar as a plain file. It is looked for at each use: a worker on another machine makes its own copy."""
        archive = self.archives[tar]
        if archive.copy and self.scratch is None:
            self.prepare(default_scratch(self, self.archives))
        return plain_tar(archive, self.scratch or Path())

    @cached_property
    def _found(self) -> tuple[TarTable, Remarks]:
        remarks = Remarks()
        return TarTable(
            sample for tar in range(len(self.archives)) for sample in self._read_list(tar, remarks)
        ), remarks

    @cached_property
    def _likely(self) -> ImagesByName:
        return ImagesByName()

    @property
    def _where(self) -> str:
        more = len(self.archives) - 1
        return self.archives[0].location + (f" and {more:,} more tars" if more else "")

    def _read_list(self, tar: int, remarks: Remarks) -> Iterator[TarSample]:
        path = self._plain(tar)
        samples: dict[str, dict[str, TarEntry]] = {}
        for member in tar_entries(path, remark=remark_at(remarks, self.archives[tar].location)):
            key, extension = split_name(relative(member.name))
            if key.rpartition("/")[2] and extension:
                parts = samples.setdefault(key, {})
                if extension in parts:
                    remarks.add("members twice in a tar, the later one is used", f"{key}.{extension}")
                parts[extension] = member
        with path.open("rb", buffering=0) as file:
            for key, parts in samples.items():
                yield self._sample(file, tar, key, parts, remarks)

    def _sample(self, file: BinaryIO, tar: int, key: str, parts: dict[str, TarEntry], remarks: Remarks) -> TarSample:
        """What the members of a key say."""
        all_images = images_among(parts, self.image)
        images = [extension for extension in all_images if not parts[extension].problem] or all_images[:1]
        if len(images) > 1:
            remarks.add("samples with several images, the first kind is used", f"{key}: {', '.join(images)}")
        texts = {
            name: readable(companion(parts, name, self.image), f"{key}.{name}", remarks)
            for name in ("cls", "txt", "json")
        }
        label, text, json_text = (_text(file, texts[name], remarks) for name in ("cls", "txt", "json"))
        captions = captions_in(text, json_text, key, remarks)
        if not label and (found := label_in(json_text)):
            remarks.add("samples without .cls whose .json has a label, which is not read", f"{key}: {found}")
        likely = likely_images(parts)
        self._likely.add([] if images else likely)
        shown = [parts[extension] for extension in images[:1] or likely]
        offset, num_bytes = (shown[0].offset, shown[0].num_bytes) if shown else (None, None)
        if shown and (shown[0].problem or not images):
            offset, num_bytes = shown[0].header, _NO_IMAGE
        return TarSample(
            tar=tar,
            key=key,
            extension=images[0] if images else "",
            offset=offset,
            num_bytes=num_bytes,
            label=label.strip(),
            captions=json.dumps(captions) if captions else "",
        )

    # ---- labels

    @cached_property
    def _names_in_cls(self) -> tuple[str, ...]:
        """The class names that .cls holds, sorted; none where all are numbers."""
        said = self._found[0].labels()
        if all(class_number(label) is not None for label in said):
            return ()
        names = tuple(sorted(set(map(_name_of, said))))
        if not self.classes:
            require_distinct(names, f"{self.archives[0].location}: .cls")
        return names

    @cached_property
    def _label_of_name(self) -> dict[str, int]:
        return {one_name(name): label for label, name in enumerate(self.class_names)}

    def _label(self, sample: TarSample) -> int:
        said = sample.label
        if not said:
            return -1
        if self._names_in_cls:
            label = self._label_of_name.get(one_name(_name_of(said)), -2)
        else:
            label = class_number(said)
            assert label is not None, said
        if label < -1 or label >= (len(self.classes) or 2**31):
            expected = f"one of the {len(self.classes):,} classes" if self.classes else "a class number from 0 on"
            raise InputError(
                f"{self.archives[sample.tar].location}: {sample.key}.cls: {expected} expected, {said[:60]!r} found; "
                "fix the class list (--classes FILE), or write the tar again"
            )
        return label


def _name_of(said: str) -> str:
    """What .cls says, as a class name: 11 where it says 11.0."""
    number = class_number(said)
    return said if number is None or said.lstrip("-").isdigit() else str(number)


def _why_no_image(member: TarEntry | None) -> str:
    """Of a sample, from its member that looks most like one."""
    if member is None or not member.problem:
        likely = f", but {split_name(member.name)[1]}: choose it with --image" if member else ""
        return f"no image among its members{likely}"
    return f"its image is {member.problem}"


def _text(file: BinaryIO, member: TarEntry | None, remarks: Remarks) -> str:
    """A text member, '' where there is none."""
    if member is None:
        return ""
    if member.num_bytes > _MAX_TEXT_BYTES:
        remarks.add(f"texts of more than {_MAX_TEXT_BYTES:,} bytes, not read", member.name)
        return ""
    data = os.pread(file.fileno(), member.num_bytes, member.offset)
    return data.decode("utf-8-sig", "replace")


# ---- the source


def _open(raw: Path | None, split: str, classes: Path | None) -> TarSplit:
    if raw is None:
        raise InputError(f"webdataset: tars expected, nothing given; name {_TARS} with --raw")
    return tars_of_folder(raw, split, classes)


def tars_of_folder(raw: Path, split: str, classes: Path | None) -> TarSplit:
    """The tars of `split` in a folder: in one of that name, or by the words in their names."""
    inner = raw / split
    folder = inner if inner.is_dir() and tars_in(inner) else raw
    names = tars_in(folder)
    mine = names if folder == inner else of_split(names, split)
    if not mine:
        found = f"{len(names)} tars of other splits, {names[0]} the first," if names else "none"
        raise InputError(
            f"{folder}: tars of split {split} expected ({split} in their names, or a folder {split}), {found} found; "
            f"name {_TARS} with --raw"
        )
    return TarSplit(look_at([str(folder / name) for name in mine]), _class_list(classes, (folder, raw)))


def tars_of_pattern(pattern: str, split: str, classes: Path | None) -> TarSplit:
    """The tars that a pattern names, whatever the split is called."""
    locations = expand(pattern)
    folders = {Path(location).parent: None for location in locations if not is_remote(location)}
    return TarSplit(look_at(locations), _class_list(classes, folders))


def _class_list(classes: Path | None, folders: Iterable[Path]) -> tuple[str, ...]:
    """The names in a class list, one a line in order of labels: `classes`, else classnames.txt in one of `folders`."""
    beside = (folder / CLASS_NAMES_FILE for folder in folders)
    path = classes or next((path for path in beside if path.is_file()), None)
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a list of class names expected, cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names or "" in names or len(set(map(one_name, names))) < len(names):
        what = "none" if not names else "an empty line" if "" in names else "one of them twice"
        raise InputError(f"{path}: class names expected, each on a line of its own in order of labels, {what} found")
    return names


_TARS = "a folder of tars, or a pattern such as 'dir/train-{000000..000012}.tar'"

WEBDATASET = Source(
    name="webdataset",
    description="tars written by anyone: images with classes (.cls) or captions (.txt, .json)",
    layout="*.tar[.gz|.zst], 'dir/train-{000..012}.tar', https:// or s3:// [classnames.txt]",
    classes="any",
    images="any",
    download="no need",
    splits=("train", "val", "test"),
    names_splits=True,
    default_splits=("train",),
    pixels="keep",
    takes_classes=True,
    open=_open,
    open_pattern=tars_of_pattern,
)
