"""What a user writes to begin a run with weights that are there already."""

from typing import Literal

from hjepa_shards.base.yaml_reader import values_of
from hjepa_shards.config import Location, Strict, parse
from hjepa_train.weights.foreign_layouts import Layout


class InitConfig(Strict):
    """Where the first weights come from. A run that continues has its own and does not read these."""

    weights: Location
    """a run's or a checkpoint's folder, a file (.safetensors, .pt, .pth, .bin), `timm:NAME`, `local-dir:FOLDER` or
    `hf-hub:ORG/NAME`"""
    parts: Literal["backbone", "all"] = "backbone"
    """what is filled: every encoder, or the whole of a run with the same objective, heads and predictor too"""
    encoder: str | None = None
    """which of a run's encoders; by default the last: the momentum target where there is one"""
    checkpoint: str = "latest"
    """which of a run's: latest, best (by the probe that its training.keep_best names) or a checkpoint's name"""
    key: str | None = None
    """of a file: the dictionary that is meant (`teacher`, `a.b`), or what the names of the wanted tensors begin with"""
    layout: Layout | None = None
    """of a file: whose names its tensors have; by default recognised by them"""
    leave: tuple[str, ...] = ()
    """names (* stands for anything) that may be missing, left over or of another shape"""

    @property
    def called(self) -> str:
        """For people: the weights, and which of them where that was chosen."""
        chosen = (self.encoder, self.checkpoint if self.checkpoint != "latest" else None, self.key)
        return ", ".join([self.weights, *(one for one in chosen if one)])


def weights_named(text: str, where: str) -> InitConfig:
    """What `init.weights` may be, or all of `init` as YAML in braces.

    where: what to call the text in errors. InputError for keys that are not known.
    """
    content = values_of(text, where) if text.lstrip().startswith("{") else {"weights": text}
    return parse(InitConfig, content if isinstance(content, dict) else {"weights": text}, where)
