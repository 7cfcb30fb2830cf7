"""The members of one key in a third-party tar: which is the image, which texts belong to it, and what is odd.

WebDataset's key ends at the first dot, so `0000.left.jpg` is the member `left.jpg` of `0000`. Such a member is an image
only if the user names it (`--image left.jpg`); its class and captions are then `left.cls`, `left.txt`, `left.json`, or
those of the key where there are none.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar, final

from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import IMAGE_EXTENSIONS
from hjepa_shards.sources.base import Remarks

UNREADABLE_MEMBER = "members that cannot be read, their samples are without them"
_SHOWN, _COUNTED = 6, 1000


class Readable(Protocol):
    """A member of a tar."""

    @property
    def problem(self) -> str:
        """Why it cannot be read; '' where it can."""
        ...


AnyMember = TypeVar("AnyMember", bound=Readable)


def image_member(said: str) -> str:
    """The member that `--image` names: what follows the key in its name, lower case. InputError for anything else."""
    member = said.lower().removeprefix(".")
    if member.rpartition(".")[2] not in IMAGE_EXTENSIONS or "/" in member or member.startswith("."):
        raise InputError(
            f"--image: what follows the key in a member's name expected, such as left.jpg of 0000.left.jpg, {said!r} "
            "found"
        )
    return member


def images_among(parts: Collection[str], image: str) -> list[str]:
    """The extensions in `parts` that are the image, the preferred one first.  image: as `image_member`, '' for any."""
    return [extension for extension in ((image,) if image else IMAGE_EXTENSIONS) if extension in parts]


def likely_images(parts: Collection[str]) -> list[str]:
    """The extensions in `parts` that `--image` could name."""
    return [extension for extension in parts if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]


def companion(parts: Mapping[str, AnyMember], extension: str, image: str) -> AnyMember | None:
    """The class (cls) or captions (txt, json) of the image member `image`: left.cls of left.jpg before cls."""
    beside, dot, _ = image.rpartition(".")
    return parts.get(f"{beside}{dot}{extension}") or parts.get(extension)


def readable(member: AnyMember | None, name: str, remarks: Remarks) -> AnyMember | None:
    """The member, None where it cannot be read, which is remarked.  name: what to call it."""
    if member is None or not member.problem:
        return member
    remarks.add(UNREADABLE_MEMBER, f"{name}: {member.problem}")
    return None


def remark_at(remarks: Remarks, where: object) -> Callable[[str, int], None]:
    """What `tar_entries` remarks about the tar `where`, added to `remarks`."""
    return lambda kind, offset: remarks.add(kind, f"{where}, byte {offset:,}")


@final
class ImagesByName:
    """How often each extension that may be an image occurs, for the error where no sample has an image."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, extensions: Sequence[str]) -> None:
        """Those of one sample. Of names with dates in them there may be as many as samples: the first are counted."""
        self._counts.update(name for name in extensions if name in self._counts or len(self._counts) < _COUNTED)

    def add_all(self, others: "ImagesByName") -> None:
        """Those of other samples."""
        for name, count in others._counts.items():
            if name in self._counts or len(self._counts) < _COUNTED:
                self._counts[name] += count

    def error(self, where: object, num_samples: int, image: str) -> str:
        """That none of the samples in `where` has an image; '' where nothing in them looks like one."""
        if not self._counts:
            return ""
        shown = ", ".join(f"{name} ({count:,})" for name, count in self._counts.most_common(_SHOWN))
        more = f" and {len(self._counts) - _SHOWN:,} more" if len(self._counts) > _SHOWN else ""
        expected = f"the image member {image}" if image else "a member such as <key>.jpg"
        return (
            f"{where}: {expected} expected in {num_samples:,} samples, none found; WebDataset's key ends at the first "
            f"dot, and what follows it is {shown}{more}; choose one with --image {self._counts.most_common(1)[0][0]}"
        )
