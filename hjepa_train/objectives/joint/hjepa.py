"""H-JEPA: predict a momentum encoder's features of hidden blocks, at several levels of coarseness.

I-JEPA (arXiv 2301.08243) with these differences: fixed numbers of visible patches (block_masks.py), targets pooled
on the dense grid to coarser levels (or, `levels: depth`, taken from several depths as V-JEPA 2.1 does), and a
term against collapse on the online encoder's position-free residuals (anticollapse.py). Coarse levels are a
hypothesis: no ablation on images is published.

Nothing learnable is on the target side. Context patches are gathered before the first block, so nothing
of a hidden patch reaches the online encoder.

Axes: B images, C channels, H W pixels, N cells of a level, M blocks, C target cells, K context patches, D
width.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.config import Strict, brief
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone, require_parts
from hjepa_train.base import schedules
from hjepa_train.base.mixture_facts import NO_FACTS, Facts
from hjepa_train.modules import flop_count, learning_signals
from hjepa_train.modules.anticollapse import sigreg, vicreg
from hjepa_train.modules.block_masks import Masking, Masks
from hjepa_train.modules.ema import follow
from hjepa_train.modules.keyed_drops import Drops
from hjepa_train.objectives.base import Batch, Objective, Sketch
from hjepa_train.objectives.joint.predictor import Predictor, PredictorConfig
from hjepa_train.objectives.recipe import Recipe

STRIDES = {8: (1, 2, 4), 12: (1, 2, 4), 14: (1, 2, 7), 16: (1, 2, 4), 28: (1, 4, 14)}
LEVEL_WEIGHTS = (1.0, 0.5, 0.25)


class HJepaConfig(Strict):
    """Everything that defines H-JEPA but the encoder."""

    levels: int | Literal["depth"] = 3
    """number of pooled levels, or `depth`: features of blocks L/3, 2L/3 and L instead"""
    strides: tuple[int, ...] | None = None
    """side of each level's cell in patches; by default from a table for grids of 8, 12, 14, 16 and 28"""
    level_weights: tuple[float, ...] | None = None
    """of each level's loss; by default 1, 0.5, 0.25"""
    predictor: PredictorConfig = PredictorConfig()
    """its size"""
    num_blocks: int = Field(default=4, ge=1)
    """hidden blocks to predict in an image"""
    num_context: int | None = Field(default=None, ge=1)
    """visible patches; by default a quarter of the grid"""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """of the target at the start, per step; it rises linearly to 1"""
    anticollapse: Literal["vicreg", "sigreg", "none"] = "vicreg"
    """the term on the online encoder's output"""
    statistics: Literal["micro", "exact"] = "micro"
    """the images of its moments: one micro-batch of all ranks, or (a second pass) the whole step"""
    variance_weight: float | None = Field(default=None, ge=0)
    """of VICReg's variance; by default 0.25 up to width 192, 0.025 above"""
    covariance_weight: float | None = Field(default=None, ge=0)
    """of VICReg's covariance; by default 0.01 up to width 192, 0.001 above"""
    sigreg_weight: float = Field(default=0.02, ge=0)
    """of SIGReg's statistic"""

    @field_validator("levels")
    @classmethod
    def _at_least_one(cls, levels: int | str) -> int | str:
        if isinstance(levels, int) and levels < 1:
            raise ValueError("1 level or more, or `depth`, expected")
        return levels


@final
class HJepa(Objective):
    """The online encoder, its momentum copy and the predictor."""

    additive_with = "`statistics: exact`"
    recipe = Recipe(name="H-JEPA's", source="the setting that learns CIFAR-10's images, docs/results.md", lr=1e-3)

    def __init__(
        self,
        backbone: Backbone,
        config: HJepaConfig,
        *,
        image_size: int,
        num_steps: int,
        seed: int,
        facts: Facts = NO_FACTS,
    ) -> None:
        """image_size: side, pixels.  num_steps: optimizer steps of the whole run.  seed: of predictor and masks.

        facts: nothing here depends on them.
        """
        super().__init__()
        del facts
        require_parts(backbone, "hjepa")
        self.config, self.num_steps = config, num_steps
        self.grid = image_size // backbone.patch_size
        self.strides, self.stages = _levels(config, self.grid, backbone.num_stages)
        self.level_weights = _level_weights(config, len(self.strides))
        _refuse_slow_target(config.momentum, num_steps)
        num_context = round(self.grid**2 / 4) if config.num_context is None else config.num_context
        grids = tuple(dict.fromkeys(self.strides))
        self.masking = Masking(
            self.grid, seed=seed, num_blocks=config.num_blocks, num_context=num_context, strides=grids
        )
        self.backbone = backbone
        self.target = deepcopy(backbone).requires_grad_(False)
        self.predictor = Predictor(
            config.predictor,
            encoder_width=backbone.width,
            grid=self.grid,
            extent=backbone.extent or self.grid,
            strides=grids,
            grid_of_level=tuple(grids.index(stride) for stride in self.strides),
            generator=torch.Generator().manual_seed(derive_key(seed, "predictor") >> 65),
        )
        narrow = backbone.width <= 192
        self._variance_weight = _or(config.variance_weight, 0.25 if narrow else 0.025)
        self._covariance_weight = _or(config.covariance_weight, 0.01 if narrow else 0.001)
        self._sigreg_key = derive_key(seed, "sigreg")
        self.register_buffer("num_updates", torch.zeros(1, dtype=torch.int64))
        self.is_additive = config.anticollapse == "none" or config.statistics == "exact"
        self._exact: deque[tuple[Tensor, dict[str, Tensor], Tensor]] = deque()

    num_updates: Tensor

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        masks = self.masking(batch.positions_B)
        targets = self.targets(batch.images_BCHW)
        context_BKD = self.encode_context(batch.images_BCHW, masks, self.backbone.draws(batch.positions_B))
        predictions = self.predictor(context_BKD, masks)
        loss_B = torch.zeros((), device=context_BKD.device)
        report: dict[str, Tensor] = {}
        for number, (predicted, target) in enumerate(zip(predictions, targets, strict=True)):
            level_BMC, share_BMC = self._cell_losses(number, predicted, target, masks)
            level_B = (level_BMC * share_BMC).sum(-1).mean(-1)
            loss_B = loss_B + self.level_weights[number] * level_B
            report[f"loss_l{number}"] = level_B.mean()
        loss = loss_B.mean()
        report |= {"loss_B": loss_B, "prediction": loss}
        if self.config.anticollapse != "none":
            term, parts = self._anticollapse(context_BKD, masks, batch.rows)
            loss = loss + term
            report |= parts
        return loss, {name: value.detach() for name, value in report.items()}

    def targets(self, images_BCHW: Tensor) -> list[Tensor]:
        """Per level [B, N, D]: the momentum encoder's features, without gradient."""
        with torch.no_grad():
            return self.level_features(self.target, images_BCHW)

    def level_features(self, encoder: Backbone, images_BCHW: Tensor) -> list[Tensor]:
        """Per level [B, N, D]: an encoder's features of the whole image, pooled to the level's cells, normalised."""
        features = encoder.encode(encoder.embed(images_BCHW), self.stages)
        sources = features.stages or (features.tokens_BND,) * len(self.strides)
        pooled = [self._pool(tokens, stride) for tokens, stride in zip(sources, self.strides, strict=True)]
        return [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in pooled]

    def encode_context(self, images_BCHW: Tensor, masks: Masks, drops: Drops | None = None) -> Tensor:
        """[B, K, D]: what the online encoder makes of the visible patches alone."""
        patches = self.backbone.embed(images_BCHW).take(masks.context_BK)
        return self.backbone.encode(patches, drops=drops).tokens_BND

    @torch.no_grad()
    def before_step(self, micro_batches: Sequence[Batch]) -> None:
        """With `statistics: exact`, the term over the whole step and its gradient at every context token."""
        self._exact.clear()
        if self.config.anticollapse == "none" or self.config.statistics == "micro":
            return
        masks = [self.masking(batch.positions_B) for batch in micro_batches]
        tokens = [
            self.encode_context(batch.images_BCHW, mask, self.backbone.draws(batch.positions_B))
            for batch, mask in zip(micro_batches, masks, strict=True)
        ]
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in tokens]
            index_BK = torch.cat([mask.context_BK for mask in masks])
            term, parts = self._term(torch.cat(leaves), index_BK)
            gradients = torch.autograd.grad(term, leaves)
        parts = {name: value.detach() for name, value in parts.items()}
        self._exact.extend((term.detach(), parts, gradient) for gradient in gradients)

    @torch.no_grad()
    def after_step(self, step: int, is_finite: Tensor) -> None:
        """Move the target towards the online encoder."""
        super().after_step(step, is_finite)
        keep = schedules.momentum(step, self.num_steps, initial=self.config.momentum)
        follow(self.target, self.backbone, 1 - keep, is_finite)
        self.num_updates.fill_(step + 1)

    def followed(self, step: int, num_steps: int) -> dict[str, float]:
        return {"momentum of the target": schedules.momentum(step, num_steps, initial=self.config.momentum)}

    @torch.no_grad()
    def survey(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums by position, of targets, of their directions and of context tokens; kept are targets and context."""
        masks = self.masking(batch.positions_B)
        kept = {"context": self.encode_context(batch.images_BCHW, masks)}
        context_BKD = learning_signals.wide(kept["context"])
        context, visible = learning_signals.sum_by_position(context_BKD, masks.context_BK, self.grid**2)
        sums = {"images": context.new_tensor(float(len(context_BKD))), "context": context, "visible": visible}
        for number, target in enumerate(self.targets(batch.images_BCHW)):
            kept[f"target_l{number}"] = target_BND = learning_signals.wide(target)
            sums[f"target_l{number}"] = target_BND.sum(0)
            sums[f"direction_l{number}"] = F.normalize(target_BND, dim=-1).sum(0)
        return sums, kept

    @torch.no_grad()
    def observe(self, batch: Batch, kept: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = self.masking(batch.positions_B)
        targets = [kept[f"target_l{number}"] for number in range(len(self.strides))]
        context_BKD = learning_signals.wide(kept["context"])
        rows: dict[str, Tensor] = {}
        for number, (predicted, target) in enumerate(zip(self.predictor(kept["context"], masks), targets, strict=True)):
            index_BMC = masks.levels[self.predictor.grid_of_level[number]].index_BMC
            loss_BMC, share_BMC = self._cell_losses(number, predicted, target, masks)
            rows[f"loss_l{number}"] = (loss_BMC * share_BMC).sum((1, 2))
            rows[f"of_position_l{number}"] = learning_signals.loss_of_position(
                target, sums[f"target_l{number}"], sums["images"], index_BMC, share_BMC
            )
            rows[f"gap_l{number}"] = learning_signals.gap_to_others(
                learning_signals.wide(predicted),
                target,
                sums[f"direction_l{number}"],
                sums["images"],
                index_BMC,
                share_BMC,
            )
        mean_ND = sums["target_l0"] / sums["images"]
        seen_N = sums["visible"].clamp(min=1)
        context_mean_ND = sums["context"] / seen_N[:, None]
        return rows | {
            "pooled": targets[-1 if self.stages else 0].mean(1),
            "within": (targets[0] - mean_ND).square().sum((1, 2)),
            "total": (targets[0] - mean_ND.mean(0)).square().sum((1, 2)),
            "context_squares": (context_BKD - context_mean_ND[masks.context_BK]).square().sum(1),
            "context_freedom": (1 - 1 / seen_N[masks.context_BK]).sum(1),
            "masks_tier1": masks.tier1_B,
            "masks_tier2": masks.tier2_B,
        }

    def diagnose(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        report: dict[str, Tensor] = {}
        for number in range(len(self.strides)):
            report[f"rho_l{number}"] = rows[f"loss_l{number}"].sum() / rows[f"of_position_l{number}"].sum()
            report[f"gap_l{number}"] = rows[f"gap_l{number}"].mean()
        return report | {
            "positional_share": learning_signals.positional_share(rows["within"], rows["total"], self.grid**2),
            "sd": learning_signals.within_position_sd(rows["context_squares"], rows["context_freedom"]),
            "rankme": learning_signals.rank_me(rows["pooled"]),
            "rankme_cap": learning_signals.rank_cap(rows["pooled"]),
            "target_distance": learning_signals.parameter_distance(self.target, self.backbone),
            "masks_tier1": rows["masks_tier1"].mean(),
            "masks_tier2": rows["masks_tier2"].mean(),
        }

    @torch.no_grad()
    def sketch(self, batch: Batch) -> Sketch:
        masks = self.masking(batch.positions_B)
        features = {name: encoder.encode(encoder.embed(batch.images_BCHW)) for name, encoder in self.encoders().items()}
        visible_BN = torch.zeros(len(batch.positions_B), self.grid**2, device=batch.positions_B.device)
        targets: list[Tensor] = []
        for grid_number in self.predictor.grid_of_level if not self.stages else (0,):
            cells = masks.levels[grid_number]
            side = self.grid // self.masking.strides[grid_number]
            counts = torch.zeros(*cells.index_BMC.shape[:2], side**2, device=visible_BN.device, dtype=torch.int64)
            targets.append(counts.scatter_add(2, cells.index_BMC, cells.weight_BMC) > 0)
        return Sketch(
            grid=self.grid,
            hidden_BN=visible_BN.scatter(1, masks.context_BK, 1) == 0,
            blocks=tuple(targets),
            features={name: feature.tokens_BND for name, feature in features.items()},
        )

    def flops_per_image(self) -> int:
        num_patches, masking, width = self.grid**2, self.masking, self.backbone.width
        embedded = self.backbone.embed_flops(num_patches)
        encoded = self.backbone.encode_flops(masking.num_context)
        predicted = self.predictor.forward_flops(masking.num_context, masking.num_blocks, masking.num_cells)
        moments = (
            flop_count.matrix(masking.num_context + 1, width, width) if self.config.anticollapse == "vicreg" else 0
        )
        target = embedded + self.target.encode_flops(num_patches)
        needs_two_passes = self.config.anticollapse != "none" and self.config.statistics == "exact"
        again = (embedded + encoded) if needs_two_passes else 0
        return flop_count.trained(encoded + predicted + moments, first=embedded) + target + again

    def encoders(self) -> dict[str, Backbone]:
        return {"online": self.backbone, "target": self.target}

    def _pool(self, tokens_BND: Tensor, stride: int) -> Tensor:
        if stride == 1:
            return tokens_BND
        grid_BDGG = tokens_BND.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.avg_pool2d(grid_BDGG, stride).flatten(2).transpose(1, 2)

    def _cell_losses(
        self, number: int, predicted_BMCD: Tensor, target_BND: Tensor, masks: Masks
    ) -> tuple[Tensor, Tensor]:
        """([B, M, C] smooth L1, [B, M, C] each cell's share in its block's loss)"""
        cells = masks.levels[self.predictor.grid_of_level[number]]
        wanted = learning_signals.at_cells(target_BND, cells.index_BMC)
        loss_BMC = F.smooth_l1_loss(predicted_BMCD, wanted, reduction="none").mean(-1)
        weight = cells.weight_BMC.to(loss_BMC.dtype)
        return loss_BMC, weight / weight.sum(-1, keepdim=True)

    def _anticollapse(self, context_BKD: Tensor, masks: Masks, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.statistics == "micro":
            return self._term(context_BKD, masks.context_BK)
        assert self._exact, "statistics: exact needs before_step"
        value, parts, gradient = self._exact.popleft()
        # The trainer scales by (micro-batch rows / rows); the gradient is already that of the whole step.
        surrogate = (gradient.to(context_BKD.dtype) * context_BKD).sum() * (rows / len(context_BKD))
        return value + (surrogate - surrogate.detach()), parts

    def _term(self, context_BKD: Tensor, context_BK: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted term, its parts) in float32, or float64 where the features are"""
        with torch.autocast(context_BKD.device.type, enabled=False):
            tokens = context_BKD.to(torch.promote_types(context_BKD.dtype, torch.float32))
            if self.config.anticollapse == "sigreg":
                value = sigreg(tokens, context_BK, self.grid**2, self._sigreg_key, self.num_updates)
                return self.config.sigreg_weight * value, {"sigreg": value}
            variance, covariance = vicreg(tokens, context_BK, self.grid**2)
            term = self._variance_weight * variance + self._covariance_weight * covariance
            return term, {"variance": variance, "covariance": covariance}


def _levels(config: HJepaConfig, grid: int, num_stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(stride of each level, stage of each level; no stages where all levels pool the encoder's output)"""
    if config.levels == "depth":
        if config.strides is not None:
            raise InputError("objective.hjepa: `levels: depth` takes no strides: its levels share the fine grid")
        if num_stages < 3:
            raise InputError(
                f"objective.hjepa: `levels: depth` needs a backbone of at least 3 blocks, {num_stages} found"
            )
        return (1, 1, 1), (round(num_stages / 3), round(2 * num_stages / 3), num_stages)
    divisors = [s for s in range(1, grid // 2 + 1) if grid % s == 0]
    strides = config.strides or ((1,) if config.levels == 1 else STRIDES.get(grid, ())[: config.levels])
    if len(strides) != config.levels or list(strides) != sorted(set(strides)) or not set(strides) <= set(divisors):
        raise InputError(
            f"objective.hjepa.strides: {config.levels} rising strides expected that cut the grid of {grid} x {grid} "
            f"into 2 or more cells a side, {brief(list(strides))} found; possible: {divisors}; set `strides` or "
            "`levels: 1`"
        )
    return strides, ()


def _level_weights(config: HJepaConfig, num_levels: int) -> tuple[float, ...]:
    weights = LEVEL_WEIGHTS[:num_levels] if config.level_weights is None else config.level_weights
    if len(weights) != num_levels or min(weights) < 0 or not any(weights):
        raise InputError(
            f"objective.hjepa.level_weights: {num_levels} of 0 or more, not all 0, expected, {brief(list(weights))} "
            "found; one a level"
        )
    return weights


def _refuse_slow_target(initial: float, num_steps: int) -> None:
    share = schedules.initial_share(num_steps, initial=initial)
    if share > schedules.MAX_INITIAL_SHARE:
        raise InputError(
            f"objective.hjepa.momentum: with {initial} over {num_steps} steps the target would keep {share:.1%} of its "
            f"initial weights, at most {schedules.MAX_INITIAL_SHARE:.0%} expected; train longer or set "
            f"`momentum: {schedules.largest_momentum(num_steps)}`"
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
