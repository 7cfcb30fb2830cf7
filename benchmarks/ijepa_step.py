"""A step of H-JEPA with one level beside a faithful step of I-JEPA: same images, same device, as many tokens.

    python benchmarks/ijepa_step.py configs/foundation_mini.yaml [--set training.compile=true] [--steps 20] [--rounds 5]

I-JEPA (arXiv 2301.08243) as its authors' code takes a step: a block size for the whole batch and contexts cut to the
batch's minimum by its collation (beforehand, as loader workers do it), attention written out, one batched pass of the
predictor, bf16 by autocast with a loss scaler, AdamW as PyTorch chooses it, a target updated one parameter at a time,
the gradient norm of each matrix and the loss read by the host in every step; never compiled. Ours is what
`hjepa-train run` does. Both take their batches from the same loader and the same augmentation; contexts and blocks have
the same numbers of patches. Rounds of both by turns; the ratio of medians, and the spread of the rounds' ratios.
"""

import argparse
import json
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.config import set_fused_attn
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hjepa_shards import Mixture, load_mixture, open_loader
from hjepa_train import RunConfig, load_run_config
from hjepa_train.backbones.vit import ViT
from hjepa_train.base.device import choose_device
from hjepa_train.base.device_peaks import device_name
from hjepa_train.base.mixture_facts import NO_FACTS
from hjepa_train.base.phase_clock import PREPARE, WAIT, PhaseClock
from hjepa_train.checkpoints.checkpoint_files import recipe_facts
from hjepa_train.data.micro_batches import page_locked
from hjepa_train.jobs.bench import WARM_UP, drive
from hjepa_train.jobs.run import autocast_of, objective_of, preparation
from hjepa_train.modules.block_masks import block_shapes
from hjepa_train.modules.layers import sincos_positions
from hjepa_train.objectives.joint.hjepa import HJepa
from hjepa_train.training.optimizer import build_optimizer
from hjepa_train.training.saved_config import resolved

NUM_MASKS = 8
"""Batches of masks that are drawn beforehand, and used in turn."""


class Encoder(nn.Module):
    """Patches by a convolution, fixed positions, blocks whose attention is written out."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("positions", sincos_positions(side, width, extent=side)[None])

    positions: Tensor

    def forward(self, images_BCHW: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        tokens = self.embed(images_BCHW).flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.blocks(tokens if masks is None else gathered(tokens, masks)))


class Predictor(nn.Module):
    """All blocks of all images in one pass, each after its own copy of the context."""

    def __init__(self, side: int, encoder_width: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed, self.project = nn.Linear(encoder_width, width), nn.Linear(width, encoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("positions", sincos_positions(side, width, extent=side)[None])

    positions: Tensor

    def forward(self, context_BKD: Tensor, context: list[Tensor], blocks: list[Tensor]) -> Tensor:
        positions = self.positions.repeat(len(context_BKD), 1, 1)
        seen = self.embed(context_BKD) + gathered(positions, context)
        at = gathered(positions, blocks)
        tokens = torch.cat([seen.repeat(len(blocks), 1, 1), self.mask_token + at], 1)
        return self.project(self.norm(self.blocks(tokens))[:, seen.shape[1] :])


def blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    set_fused_attn(False)
    return nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))


def gathered(tokens_BND: Tensor, masks: list[Tensor]) -> Tensor:
    """[masks * B, K, D]: the patches of each mask [B, K], one mask after the other."""
    return torch.cat([tokens_BND.gather(1, mask[..., None].expand(-1, -1, tokens_BND.shape[-1])) for mask in masks])


class Steps:
    """Steps of I-JEPA, one after the other."""

    def __init__(self, config: RunConfig, like: HJepa, device: torch.device) -> None:
        """like: whose sizes and numbers of patches these are."""
        assert isinstance(like.backbone, ViT)
        vit, predictor, self.config = like.backbone, like.config.predictor, config
        self.encoder = Encoder(like.grid, vit.patch_size, vit.width, vit.num_stages, vit.num_heads).to(device)
        self.predictor = Predictor(like.grid, vit.width, predictor.width, predictor.depth, predictor.heads).to(device)
        self.target = deepcopy(self.encoder).requires_grad_(False)
        trained = [*self.encoder.parameters(), *self.predictor.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter.ndim > 1]},
            {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
        ]
        assert config.training.lr is not None
        self.optimizer = torch.optim.AdamW(groups, lr=config.training.lr, weight_decay=0.04)
        self.autocast, self.device = autocast_of(config.training, device), device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.training.precision != "fp32")
        self.masks = [collated(like, config.training.global_batch, number) for number in range(NUM_MASKS)]
        self.taken = 0

    def step(self, images_BCHW: Tensor) -> float:
        """The loss."""
        context, *blocks = (mask.to(self.device, non_blocking=True) for mask in self.masks[self.taken % NUM_MASKS])
        with self.autocast():
            with torch.no_grad():
                features = self.target(images_BCHW)
                wanted = gathered(F.layer_norm(features, features.shape[-1:]), blocks)
            predicted = self.predictor(self.encoder(images_BCHW, [context]), [context], blocks)
            loss = F.smooth_l1_loss(predicted, wanted)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for parameter in self.encoder.parameters():
            if parameter.ndim > 1 and parameter.grad is not None:
                float(parameter.grad.norm())
        self.optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                ours.mul_(0.996).add_(0.004 * theirs)
        self.taken += 1
        return float(loss.detach())


def collated(like: HJepa, batch: int, seed: int) -> list[Tensor]:
    """Context [B, K], then each block [B, Q]: I-JEPA's cells, contexts cut to our number, too small ones redrawn."""
    side, masking, generator = like.grid, like.masking, torch.Generator().manual_seed(seed)
    height, width = max(block_shapes(side), key=lambda shape: shape[0] * shape[1])
    assert height * width == masking.num_cells[0]
    cells = torch.arange(side**2).view(side, side)

    def below(limit: int) -> int:
        return int(torch.randint(max(1, limit), (), generator=generator))

    rows = list[list[Tensor]]()
    while len(rows) < batch:
        visible = torch.zeros(side, side, dtype=torch.bool)
        edge = side - below(side - round(side * 0.85**0.5) + 1)
        top, left = below(side - edge), below(side - edge)
        visible[top : top + edge, left : left + edge] = True
        blocks = list[Tensor]()
        for _ in range(masking.num_blocks):
            top, left = below(side - height), below(side - width)
            blocks.append(cells[top : top + height, left : left + width].flatten())
            visible[top : top + height, left : left + width] = False
        context = cells[visible]
        if len(context) >= masking.num_context:
            rows.append([context[: masking.num_context], *blocks])
    return [torch.stack(masks) for masks in zip(*rows, strict=True)]


def drive_ijepa(config: RunConfig, mixture: Mixture, steps: Steps, stop: int) -> list[dict[str, float]]:
    """As hjepa_train.jobs.bench.drive: the times of steps [0, stop)."""
    clock, prepare = PhaseClock(steps.device, waits=False), preparation(config, steps.device)
    batch = config.training.global_batch
    with open_loader(
        mixture, seed=config.run.seed, global_batch=batch, allocate=page_locked(steps.device), stops_alone=True
    ) as loader:
        for _ in range(stop):
            loaded = next(loader)
            clock.mark(WAIT)
            (prepared,) = prepare(loaded)
            clock.mark(PREPARE)
            loss = steps.step(prepared.images_BCHW)
            clock.end_step()
            assert loss == loss, "I-JEPA's loss is not a number"
    return clock.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--steps", type=int, default=20, help="counted, of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    written = load_run_config(arguments.config, ["objective.hjepa.levels=1", *arguments.changes])
    config = resolved(written, str(arguments.config))
    mixture, device = load_mixture(config.data, str(arguments.config)), choose_device(config.training.device)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    num_steps = mixture.make_plan(config.run.seed).num_steps(config.training.epochs, config.training.global_batch)
    objective = objective_of(config, num_steps, str(arguments.config), device, NO_FACTS)
    assert isinstance(objective, HJepa), "objective: hjepa expected"
    ijepa, optimizer = Steps(config, objective, device), build_optimizer(objective, config.training)
    stop, ours, theirs, ratios = WARM_UP + arguments.steps, list[float](), list[float](), list[float]()
    for number in range(arguments.rounds):
        mine = drive(config, mixture, objective, optimizer, num_steps, device, stop, waits=False)
        other = drive_ijepa(config, mixture, ijepa, stop)
        mine_s, other_s = ([sum(step.values()) for step in steps[WARM_UP:]] for steps in (mine, other))
        ours, theirs, ratios = [*ours, *mine_s], [*theirs, *other_s], [*ratios, median(other_s) / median(mine_s)]
        print(f"round {number + 1}: ours {median(mine_s):.3f} s, I-JEPA {median(other_s):.3f} s, {ratios[-1]:.2f}x")
    facts = recipe_facts(device=device, world_size=1, eager=not config.training.compile)
    speeds = {
        name: config.training.global_batch / median(times) for name, times in {"H-JEPA": ours, "I-JEPA": theirs}.items()
    }
    result = {
        "images_per_s": speeds,
        "ratio": median(theirs) / median(ours),
        "rounds": [min(ratios), max(ratios)],
        "precision": config.training.precision,
        "device": device_name(device),
        **facts,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
