"""Supervised learning: cross-entropy of a linear head on the pooled vector, for any backbone.

Label smoothing (arXiv 1512.00567), mixup and CutMix of neighbours (mixed_pairs.py), and a running average of the
weights (Polyak). The classes are those of the whole mixture, united by name. An image without a label counts nothing:
losses are divided by the labelled images of the step on all ranks, not by those of a micro-batch, so they are the same
for every split of it.

Axes: B images, C channels, H W pixels, D width, K classes.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.distributed import all_reduce, world_size
from hjepa_train.base.mixture_facts import Facts
from hjepa_train.modules import flop_count
from hjepa_train.modules.ema import follow
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.objectives.recipe import Recipe
from hjepa_train.objectives.supervised.mixed_pairs import MixConfig, mix_pairs, quantiles_of


class SupervisedConfig(Strict):
    """Everything that defines supervised learning but the backbone and the augmentation."""

    classes: int | None = Field(default=None, ge=2, le=2**20)
    """by default those of the mixture; a number is compared with them, and lets a dry run begin before anything is
    built"""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """share of a label that is spread over all classes"""
    mix: MixConfig = MixConfig()
    """of neighbours in a batch"""
    average: float | None = Field(default=None, gt=0, lt=1)
    """share of the weights' running average that stays in a step, which is evaluated too; less in the first steps, as
    (1 + step) / (10 + step). ConvNeXt: 0.9999, DeiT: 0.99996; null for none"""


_DEIT = Recipe(
    name="DeiT's",
    source="arXiv 2012.12877, and its authors' main.py",
    lr_per_256=2.5e-4,
    min_lr=1e-5,
    warmup_epochs=5,
)
RECIPES = {
    "vit": Recipe(
        name="ViT's for ImageNet-1k",
        source="arXiv 2010.11929, appendix B.1, table 3: 3e-3 for batches of 4,096",
        lr_per_256=1.875e-4,
        warmup_epochs=32,
        weight_decay=0.3,
        clip_norm=1,
    ),
    "deit": _DEIT,
    "swin": Recipe(
        name="Swin's",
        source="arXiv 2103.14030, and its authors' config.py",
        lr_per_256=2.5e-4,
        min_lr=1e-5,
        warmup_epochs=20,
        clip_norm=5,
    ),
    "convnext": Recipe(
        name="ConvNeXt's",
        source="arXiv 2201.03545: 4e-3 for batches of 4,096",
        lr_per_256=2.5e-4,
        min_lr=1e-6,
        warmup_epochs=20,
    ),
    "tinyvit": Recipe(
        name="TinyViT's",
        source="arXiv 2207.10666, and its authors' config.py",
        lr_per_256=2.5e-4,
        min_lr=1e-5,
        warmup_epochs=20,
        clip_norm=5,
    ),
}
"""By backbone; DeiT's for all others."""


@final
class Supervised(Objective):
    """The encoder and its classifier."""

    recipe = _DEIT
    recipes_by_backbone = RECIPES

    def __init__(
        self,
        backbone: Backbone,
        config: SupervisedConfig,
        *,
        image_size: int,
        num_steps: int,
        seed: int,
        facts: Facts,
    ) -> None:
        """image_size: side, pixels.  num_steps: nothing here depends on it.  seed: of the head and of what is mixed."""
        super().__init__()
        del num_steps
        self.config, self._seed = config, seed
        self.num_patches = (image_size // backbone.patch_size) ** 2
        self.class_names = _classes(facts, config.classes)
        self.rows_together = 2 if config.mix.mixup or config.mix.cutmix else 1
        num_classes = len(self.class_names) or config.classes
        assert num_classes
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, num_classes)
        generator = torch.Generator().manual_seed(derive_key(seed, "classifier") >> 65)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.average = None
        if config.average is not None:
            self.average = nn.ModuleDict({"backbone": deepcopy(backbone), "head": deepcopy(self.head)})
            self.average.requires_grad_(False)
        self.register_buffer("_numbers", _table(facts), persistent=False)
        self.register_buffer("_labelled", torch.ones(()), persistent=False)
        if self.rows_together == 2:
            self.register_buffer("_quantiles", quantiles_of(config.mix), persistent=False)

    _numbers: Tensor
    _labelled: Tensor
    _quantiles: Tensor

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        labels_B = self.labels(batch)
        images, own_B = batch.images_BCHW, torch.ones_like(labels_B, dtype=torch.float32)
        if self.rows_together == 2:
            images, own_B = mix_pairs(
                images, labels_B >= 0, batch.positions_B, self.config.mix, self._quantiles, self._seed
            )
        drops = self.backbone.draws(batch.positions_B)
        logits_BK = self.head(self.backbone.encode(self.backbone.embed(images), drops=drops).pooled_BD)
        with torch.autocast(logits_BK.device.type, enabled=False):
            wide_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
            loss_B = self._loss(wide_BK, labels_B) * own_B.to(wide_BK.dtype)
            if self.rows_together == 2:
                partners_B = labels_B.view(-1, 2).flip(1).flatten()
                loss_B = loss_B + self._loss(wide_BK, partners_B) * (1 - own_B.to(wide_BK.dtype))
        # the trainer averages over micro-batches and ranks: this makes it the mean over the step's labelled images
        share = batch.rows * world_size() / (len(labels_B) * self._labelled.to(wide_BK.dtype))
        right_B = (wide_BK.argmax(1) == labels_B) & (labels_B >= 0)
        metrics = {"loss_B": loss_B.detach(), "accuracy": 100 * right_B.sum() * share}
        return loss_B.sum() * share, metrics

    @torch.no_grad()
    def before_step(self, micro_batches: Sequence[Batch]) -> None:
        """Count the step's images that have a label, on all ranks."""
        counts = [(self.labels(batch) >= 0).sum() for batch in micro_batches]
        self._labelled = all_reduce(torch.stack(counts).sum().float()).clamp(min=1)

    @torch.no_grad()
    def after_step(self, step: int, is_finite: Tensor) -> None:
        """Move the average towards the weights."""
        super().after_step(step, is_finite)
        if self.average is not None:
            assert self.config.average is not None
            keep = min(self.config.average, (1 + step) / (10 + step))
            follow(self.average["backbone"], self.backbone, 1 - keep, is_finite)
            follow(self.average["head"], self.head, 1 - keep, is_finite)

    def labels(self, batch: Batch) -> Tensor:
        """[B] numbers among `class_names`; -1: none."""
        if not self._numbers.numel():
            return batch.labels_B
        known_B = self._numbers[batch.entry_B, batch.labels_B.clamp(min=0)]
        return torch.where(batch.labels_B < 0, -1, known_B)

    def classify(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Encoder -> [B, K] logits of its own classifier."""
        heads = {"encoder": self.head} | ({"average": self.average["head"]} if self.average is not None else {})
        return {
            name: heads[name](encoder.encode(encoder.embed(images_BCHW)).pooled_BD)
            for name, encoder in self.encoders().items()
        }

    def flops_per_image(self) -> int:
        head = flop_count.matrix(1, self.backbone.width, self.head.out_features)
        encoded = self.backbone.encode_flops(self.num_patches)
        return flop_count.trained(encoded + head, first=self.backbone.embed_flops(self.num_patches))

    def encoders(self) -> dict[str, Backbone]:
        if self.average is None:
            return {"encoder": self.backbone}
        average = self.average["backbone"]
        assert isinstance(average, Backbone)
        return {"encoder": self.backbone, "average": average}

    def _loss(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """[B]: 0 for an image without a label."""
        return F.cross_entropy(
            logits_BK, labels_B, ignore_index=-1, label_smoothing=self.config.smoothing, reduction="none"
        )


def _classes(facts: Facts, expected: int | None) -> tuple[str, ...]:
    """The mixture's. InputError where it has none, where labels have no names, or where they are not as many."""
    where = "objective.supervised"
    nameless = [entry.name for entry in facts.entries if entry.has_labels and not entry.class_names]
    if nameless:
        raise InputError(
            f"{where}: class names expected, found in {', '.join(nameless)} bare numbers, which may mean other classes "
            "in each source; build with class names (webdataset and index: --classes)"
        )
    names = facts.class_names
    if not names and expected is None:
        listed = ", ".join(entry.name for entry in facts.entries) or "none"
        raise InputError(
            f"{where}: a source with labels expected in data.sources, none found ({listed}); build one, or set "
            "objective.supervised.classes to plan a run before it is built"
        )
    if names and expected is not None and len(names) != expected:
        raise InputError(
            f"{where}.classes: {expected:,} expected, the mixture has {len(names):,}: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}; remove the key, or name other sources"
        )
    return names


def _table(facts: Facts) -> Tensor:
    """[entries, most labels] int64: an entry's labels among the mixture's classes; empty where none are known."""
    numbers = facts.numbers()
    most = max(map(len, numbers), default=0)
    if not most:
        return torch.empty(0, 0, dtype=torch.int64)
    return torch.tensor([row + [-1] * (most - len(row)) for row in numbers])
