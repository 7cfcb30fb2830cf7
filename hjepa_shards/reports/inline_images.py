"""Images of a page: data URIs, within a number of bytes that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup

from hjepa_shards.base.notebook_html import data_uri
from hjepa_shards.reports.split_survey import Shown
from hjepa_shards.shards.manifest import class_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image of the page, or the reason why there is none."""

    uri: Markup
    """data:...; empty where `missing` says why."""
    title: str
    small: bool
    """Few pixels: enlarged without smoothing."""
    missing: str = ""
    captions: tuple[str, ...] = ()


@final
class Budget:
    """Bytes of images that the page may still take, dealt out evenly over its parts."""

    def __init__(self, num_bytes: int, *, parts: int) -> None:
        self._left, self._parts, self._floor = num_bytes, parts, 0

    def next_part(self) -> None:
        """What the parts before left over is for those that follow."""
        self._floor = self._left - self._left // max(1, self._parts)
        self._parts -= 1

    def picture(self, image: bytes, title: str, captions: tuple[str, ...] = ()) -> Picture | None:
        """None where the images of this part are used up."""
        if self._left - len(image) < self._floor:
            return None
        self._left -= len(image)
        return Picture(uri=data_uri(image), title=title, small=image.startswith(b"\x89PNG"), captions=captions)

    def shown(self, shown: Shown, class_names: Sequence[str]) -> Picture | None:
        parts = [class_name(class_names, shown.label)] if shown.label >= 0 else []
        parts += [shown.name] if shown.name else []
        title = " · ".join([*parts, f"{shown.width} × {shown.height}", f"sample {shown.index:,}"])
        if shown.damage:
            return Picture(uri=Markup(), title=title, small=False, missing=shown.damage)
        return self.picture(shown.image, title, shown.captions)
