"""The backbones a configuration can name."""

import torch

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.config import Strict
from hjepa_train.backbones.base import Backbone, Features, Patches
from hjepa_train.backbones.convnext import Convnext, ConvnextConfig
from hjepa_train.backbones.swin import Swin, SwinConfig
from hjepa_train.backbones.timm_nets import TimmConfig, TimmNet
from hjepa_train.backbones.tinyvit import Tinyvit, TinyvitConfig
from hjepa_train.backbones.vit import DeitConfig, ViT, VitConfig

__all__ = ["BACKBONES", "Backbone", "Features", "Patches", "ViT", "VitConfig", "build_backbone"]

BACKBONES: dict[str, tuple[type[Strict], type]] = {
    "vit": (VitConfig, ViT),
    "deit": (DeitConfig, ViT),
    "convnext": (ConvnextConfig, Convnext),
    "swin": (SwinConfig, Swin),
    "tinyvit": (TinyvitConfig, Tinyvit),
    "timm": (TimmConfig, TimmNet),
}


def build_backbone(name: str, config: Strict, image_size: int, *, seed: int) -> Backbone:
    """The backbone of that name for square images of `image_size` pixels; its weights depend on `seed` alone."""
    generator = torch.Generator().manual_seed(derive_key(seed, "backbone") >> 65)
    backbone = BACKBONES[name][1](config, image_size, generator)
    backbone.key_drops(seed)
    return backbone
