"""SimCLR: two views of an image find each other among the views of all others (arXiv 2002.05709).

An encoder and a head of two layers; the head is thrown away afterwards. The views are the loader's crops
(`data.augmentation.views: 2`), changed independently on the device; the paper's setting is `crop_scale: [0.08, 1]`,
`color_jitter: 0.8`, `grayscale: 0.2`, `blur: 0.5` (CIFAR: 0.4, 0.2 and no blur). Candidates are the views of one
micro-batch on all ranks. Where we differ: AdamW for LARS, no batch normalisation in the head (the paper's formula has
none, its code has), no change of hue.

Axes: B images, C channels, H W pixels, D encoder width, P width of the head's output, A = 2B anchors (both views of
this rank's images), G candidates (those of all ranks).
"""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.config import Strict
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.distributed import gather_rows, rank
from hjepa_train.base.mixture_facts import NO_FACTS, Facts
from hjepa_train.modules import flop_count, learning_signals
from hjepa_train.modules.keyed_drops import joined
from hjepa_train.modules.layers import initialise
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.objectives.recipe import Recipe


class SimclrConfig(Strict):
    """Everything that defines SimCLR but the encoder and the augmentation."""

    temperature: float = Field(default=0.1, gt=0)
    """of the softmax over candidates; the paper's for ImageNet and large batches, 0.5 for CIFAR-10"""
    hidden: int | None = Field(default=None, gt=0, le=2**16)
    """width of the head's inner layer; by default the encoder's"""
    width: int = Field(default=128, gt=0, le=2**16)
    """of the head's output, in which views are compared"""


@final
class Simclr(Objective):
    """The encoder and its projection head."""

    num_views = 2
    is_additive = False
    recipe = Recipe(
        name="AdamW for contrast with a ViT",
        source="MoCo v3's (arXiv 2104.02057); SimCLR's own is for LARS",
        lr_per_256=1.5e-4,
        weight_decay=0.1,
        warmup_epochs=40,
    )

    def __init__(
        self,
        backbone: Backbone,
        config: SimclrConfig,
        *,
        image_size: int,
        num_steps: int,
        seed: int,
        facts: Facts = NO_FACTS,
    ) -> None:
        """image_size: side, pixels.  num_steps, facts: nothing here depends on them.  seed: of the head."""
        super().__init__()
        del num_steps, facts
        self.num_patches = (image_size // backbone.patch_size) ** 2
        self.config = config
        self.backbone = backbone
        hidden = config.hidden or backbone.width
        self.head = nn.Sequential(nn.Linear(backbone.width, hidden), nn.ReLU(), nn.Linear(hidden, config.width))
        initialise(self.head, torch.Generator().manual_seed(derive_key(seed, "projection") >> 65))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        _, first_BP, second_BP = self.embed(batch)
        with torch.autocast(first_BP.device.type, enabled=False):
            loss_B = nt_xent(first_BP, second_BP, self.config.temperature)
        return loss_B.mean(), {"loss_B": loss_B.detach()}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """([2B, D] features, [B, P] first views on the unit sphere, [B, P] second ones), all float32 or wider."""
        (second_BCHW,) = batch.other_views
        images = torch.cat([batch.images_BCHW, second_BCHW])
        drops = [self.backbone.draws(batch.positions_B, view) for view in range(2)]
        features = self.backbone.encode(self.backbone.embed(images), drops=joined(drops)).pooled_BD
        projected = self.head(features)
        wide = torch.promote_types(projected.dtype, torch.float32)
        first_BP, second_BP = F.normalize(projected.to(wide), dim=1).chunk(2)
        return features.to(wide), first_BP, second_BP

    @torch.no_grad()
    def observe(self, batch: Batch, kept: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features, first_BP, second_BP = self.embed(batch)
        return {"pooled": features[: len(first_BP)], "first": first_BP, "second": second_BP}

    def diagnose(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "alignment": learning_signals.alignment(rows["first"], rows["second"]),
            "uniformity": learning_signals.uniformity(rows["first"]),
            "rankme": learning_signals.rank_me(rows["pooled"]),
            "rankme_cap": learning_signals.rank_cap(rows["pooled"]),
        }

    def flops_per_image(self) -> int:
        """Without the comparison of views, whose part grows with the batch: 0.02% of a ViT-S/16 with 4,096 images."""
        hidden = self.config.hidden or self.backbone.width
        head = flop_count.matrix(1, self.backbone.width, hidden) + flop_count.matrix(1, hidden, self.config.width)
        encoded = self.backbone.encode_flops(self.num_patches)
        return self.num_views * flop_count.trained(encoded + head, first=self.backbone.embed_flops(self.num_patches))

    def encoders(self) -> dict[str, Backbone]:
        return {"encoder": self.backbone}


def nt_xent(first_BP: Tensor, second_BP: Tensor, temperature: float) -> Tensor:
    """[B]: -log of the softmax that a view gives to its partner among all others of all ranks, mean of both views.

    first_BP, second_BP: this rank's unit vectors.  The mean over B and ranks is the paper's loss of the global batch.
    """
    anchors_AP = torch.cat([first_BP, second_BP])
    similar_AG = anchors_AP @ gather_rows(anchors_AP).T / temperature
    row_A = torch.arange(len(anchors_AP), device=anchors_AP.device)
    itself_A = row_A + rank() * len(anchors_AP)
    similar_AG = similar_AG.scatter(1, itself_A[:, None], -torch.inf)
    partner_A = itself_A.roll(len(first_BP))
    return F.cross_entropy(similar_AG, partner_A, reduction="none").view(2, -1).mean(0)
