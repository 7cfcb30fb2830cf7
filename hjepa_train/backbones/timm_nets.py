"""Any network of timm that gives one grid of cells, for objectives that want the whole image.

Its patches are the pixels of the cells that come out of it, and the network itself runs in `encode`. So patches can be
replaced, as for every backbone, and nothing need be known of the network's inside: a pass of one empty image shows what
it gives.

Names in the state_dict() are timm's.

Axes: B images, C channels, H W pixels, N cells row by row, R prefix tokens, D width.
"""

import difflib
from collections.abc import Sequence
from math import isqrt
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone, Features, Patches, TimmForm
from hjepa_train.backbones.timm_layers import build_keyed, learns, repeated, require_timm
from hjepa_train.modules.keyed_drops import Drops, dropping

_OURS = ("pretrained", "checkpoint", "cache", "cfg", "num_classes", "in_chans", "features", "img_size", "scriptable")
"""Parts of the names of arguments that are not the user's; and everything that drops, for it would be drawn unkeyed."""


class TimmConfig(Strict):
    """One of `timm.list_models()`, without its weights."""

    name: str = Field(min_length=1, max_length=200)
    """of the network in timm: resnet50, say"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate at which an image loses a branch in the last block, where the network has such branches"""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """more of the network's own arguments, as `timm.create_model` takes them"""

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if "drop" in key or any(part in key for part in _OURS):
                raise ValueError(f"arguments of the network's shape expected, `{key}` found; use `drop_path` for drops")
        return value


@final
class TimmNet(Backbone):
    """Images to cells."""

    takes_parts = False

    def __init__(self, config: TimmConfig, image_size: int, generator: torch.Generator) -> None:
        """image_size: side of the training images in pixels."""
        super().__init__()
        require_timm("timm")
        import timm

        names = timm.list_models()
        if config.name not in names:
            near = ", ".join(difflib.get_close_matches(config.name, names, 3))
            raise InputError(
                f"backbone.timm.name: one of timm.list_models() expected, {config.name} found; near: {near}"
            )
        self.config = config
        self._arguments = dict(config.arguments)

        def build() -> Any:
            drops = {"drop_path_rate": config.drop_path} if config.drop_path else {}
            sized, create = {"img_size": image_size}, cast(Any, timm.create_model)
            try:
                network = create(config.name, num_classes=0, **self._arguments, **drops, **sized)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                network = create(config.name, num_classes=0, **self._arguments, **drops)
            else:
                self._arguments |= sized
            return network

        try:
            network = build_keyed(build, generator, "timm")
            self._adopt(network)
            self._look(image_size)
        except InputError:
            raise
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"backbone.timm: {config.name}: a network with forward_features, forward_intermediates and one square "
                f"grid of cells for images of {image_size} pixels expected: {reason}; choose another network, image "
                "size or `arguments`"
            ) from error

    def embed(self, images_BCHW: Tensor) -> Patches:
        grid = images_BCHW.shape[2] // self.patch_size
        cells_BNV = F.pixel_unshuffle(images_BCHW, self.patch_size).flatten(2).mT
        index_BN = torch.arange(grid * grid, device=images_BCHW.device).expand(images_BCHW.shape[0], -1)
        return Patches(tokens_BND=cells_BNV, index_BN=index_BN, grid=grid)

    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        (network,) = self._network
        network.training = self.training
        images = F.pixel_shuffle(patches.as_map().permute(0, 3, 1, 2), self.patch_size)
        with dropping(drops):
            found = network.forward_features(images)
            kept = (
                network.forward_intermediates(images, indices=[stage - 1 for stage in stages], intermediates_only=True)
                if stages
                else ()
            )
        prefix_BRD, tokens_BND = self._split(found)
        return Features(
            tokens_BND=tokens_BND,
            pooled_BD=network.forward_head(found) if self._has_pool else tokens_BND.mean(1),
            stages=tuple(maps.flatten(2).mT for maps in kept),
            grid=isqrt(tokens_BND.shape[1]),
            prefix_BRD=prefix_BRD,
        )

    def block_list(self) -> Sequence[nn.Module]:
        (network,) = self._network
        blocks = repeated(network)
        inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        if 2 * inside >= sum(parameter.numel() for parameter in network.parameters()):
            return blocks
        return [child for child in network.children() if learns(child) and any(child.children())]

    def as_timm(self) -> TimmForm:
        (network,) = self._network
        if not self._has_pool:
            raise InputError(
                f"a network whose head gives a vector as wide as its cells expected, {self.config.name} found"
            )
        return TimmForm(
            architecture=self.config.name,
            arguments=self._arguments | {"num_classes": 0},
            first_conv=network.pretrained_cfg.get("first_conv"),
            classifier=network.pretrained_cfg.get("classifier"),
        )

    def _adopt(self, network: nn.Module) -> None:
        """Its parts become those of this module, in the same dictionaries: one tree, by timm's names.

        The network itself is in no tree: it only runs them.
        """
        self._network: tuple[Any] = (network,)
        for kind in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            object.__setattr__(self, kind, getattr(network, kind))

    @torch.no_grad()
    def _look(self, image_size: int) -> None:
        """What the network gives for images of this size."""
        (network,) = self._network
        training, image = network.training, torch.zeros(1, 3, image_size, image_size)
        network.eval()
        found = network.forward_features(image)
        self.num_stages = len(network.forward_intermediates(image, intermediates_only=True))
        if not isinstance(found, Tensor) or found.ndim not in (3, 4):
            raise ValueError("its features are no grid")
        tokens = self._split(found)[1]
        grid = isqrt(tokens.shape[1])
        if grid**2 != tokens.shape[1] or grid == 0 or image_size % grid:
            raise ValueError(f"{tokens.shape[1]} cells found")
        self.width = tokens.shape[2]
        self.patch_size = self.stride = image_size // grid
        self.embed_width = 3 * self.patch_size**2
        self._has_pool = network.forward_head(found).shape == (1, self.width)
        network.train(training)

    def _split(self, found: Tensor) -> tuple[Tensor | None, Tensor]:
        """([B, R, D] or None, [B, N, D]) of what the network gives."""
        (network,) = self._network
        if found.ndim == 4:
            is_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
            return None, found.flatten(1, 2) if is_last else found.flatten(2).mT
        num_prefix = getattr(network, "num_prefix_tokens", 0)
        return (found[:, :num_prefix] if num_prefix else None), found[:, num_prefix:]
