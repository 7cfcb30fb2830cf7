"""Steps of supervised learning, MAE and SimCLR beside what users would pick instead: timm's and lightly's.

    python benchmarks/peer_steps.py configs/cifar10_cpu.yaml [--set training.threads=1] [--steps 20] [--rounds 5]

Needs `pip install timm lightly`. The same encoder (timm's ViT of the configuration's width, depth, heads and patch,
mean pooling, no class token but in MAE, where lightly's wants one), the same batches from the same loader and the same
augmentation, AdamW. Theirs are the loops of timm's train.py (label smoothing, create_optimizer_v2) and of lightly's
examples for MAE (MaskedVisionTransformerTIMM, MAEDecoderTIMM) and SimCLR (SimCLRProjectionHead, NTXentLoss), compiled
nowhere, without distribution. Ours is what `hjepa-train run` does, gradient norm and per-source losses included.

Rounds of both by turns; the ratio of medians, and the spread of the rounds' ratios.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import timm.loss
import timm.optim
import torch
from torch import Tensor, nn

from hjepa_shards import load_mixture, open_loader
from hjepa_shards.base.atomic_files import write_atomically
from hjepa_train import RunConfig, load_run_config
from hjepa_train.backbones.registry import BACKBONES
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.device import choose_device
from hjepa_train.base.device_peaks import device_name
from hjepa_train.base.mixture_facts import facts_of
from hjepa_train.base.phase_clock import PREPARE, WAIT, PhaseClock
from hjepa_train.checkpoints.checkpoint_files import recipe_facts
from hjepa_train.jobs.bench import WARM_UP, drive
from hjepa_train.jobs.run import objective_of, preparation
from hjepa_train.objectives.base import Batch
from hjepa_train.training.config import room
from hjepa_train.training.optimizer import build_optimizer

DECODER = {"width": 96, "depth": 1, "heads": 3}
FAMILIES = {
    "supervised": {"supervised": {"smoothing": 0.1}},
    "mae": {"mae": {"decoder": DECODER, "normalise_patches": False}},
    "simclr": {"simclr": {"temperature": 0.2, "width": 128}},
}


def vit_of(config: RunConfig, **changes: Any) -> nn.Module:
    """timm's, of the configuration's size."""
    _, vit, _ = room(config.backbone, BACKBONES, "backbone")
    assert isinstance(vit, VitConfig), "backbone: vit expected"
    width, depth, heads = vit.shape
    size = {"patch_size": vit.patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    plain = {"class_token": False, "global_pool": "avg", "fc_norm": False, "img_size": config.data.image_size}
    return timm.create_model("vit_tiny_patch16_224", **(size | plain | changes))


def timm_supervised(config: RunConfig, num_classes: int) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    model, criterion = vit_of(config, num_classes=num_classes), timm.loss.LabelSmoothingCrossEntropy(0.1)
    return model, lambda batch: criterion(model(batch.images_BCHW), batch.labels_B)


def lightly_mae(config: RunConfig, num_classes: int) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    del num_classes
    vit = vit_of(config, num_classes=0, class_token=True, global_pool="token")
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=vit.patch_embed.patch_size[0],
        embed_dim=vit.embed_dim,
        decoder_embed_dim=DECODER["width"],
        decoder_depth=DECODER["depth"],
        decoder_num_heads=DECODER["heads"],
        mlp_ratio=4.0,
        proj_drop_rate=0.0,
        attn_drop_rate=0.0,
    )
    criterion = nn.MSELoss()

    def loss(batch: Batch) -> Tensor:
        images, length = batch.images_BCHW, encoder.sequence_length
        keep, hidden = utils.random_token_mask(size=(len(images), length), mask_ratio=0.75, device=images.device)
        embedded = decoder.embed(encoder.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, keep, embedded.type_as(tokens))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), hidden))
        wanted = utils.get_at_index(utils.patchify(images, vit.patch_embed.patch_size[0]), hidden - 1)
        return criterion(predicted, wanted)

    return nn.ModuleList([encoder, decoder]), loss


def lightly_simclr(config: RunConfig, num_classes: int) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    del num_classes
    vit = vit_of(config, num_classes=0)
    head, criterion = SimCLRProjectionHead(vit.embed_dim, vit.embed_dim, 128), NTXentLoss(temperature=0.2)

    def loss(batch: Batch) -> Tensor:
        (second,) = batch.other_views
        return criterion(head(vit(batch.images_BCHW)), head(vit(second)))

    return nn.ModuleList([vit, head]), loss


PEERS = {"supervised": timm_supervised, "mae": lightly_mae, "simclr": lightly_simclr}


def drive_peer(
    config: RunConfig, model: nn.Module, loss_of: Callable[[Batch], Tensor], optimizer: Any, stop: int
) -> list[dict[str, float]]:
    """As hjepa_train.jobs.bench.drive: the times of steps [0, stop)."""
    mixture, device = load_mixture(config.data, "peer"), choose_device(config.training.device)
    clock, prepare = PhaseClock(device, waits=False), preparation(config, device)
    model.train()
    batch = config.training.global_batch
    with open_loader(mixture, seed=config.run.seed, global_batch=batch, stops_alone=True) as loader:
        for _ in range(stop):
            loaded = next(loader)
            clock.mark(WAIT)
            (prepared,) = prepare(loaded)
            clock.mark(PREPARE)
            loss = loss_of(prepared)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.end_step()
            assert loss.isfinite()
    return clock.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--steps", type=int, default=20, help="counted, of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file for the result")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for family, objective_config in FAMILIES.items():
        views = [f"data.augmentation.views={2 if family == 'simclr' else 1}"]
        config = load_run_config(arguments.config, [*views, *arguments.changes])
        config = config.model_copy(update={"objective": objective_config})
        mixture, device = load_mixture(config.data, family), choose_device(config.training.device)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        stop, num_steps = WARM_UP + arguments.steps, 10**4
        objective = objective_of(config, num_steps, family, device, facts_of(mixture))
        optimizer = build_optimizer(objective, config.training)
        model, loss_of = PEERS[family](config, len(facts_of(mixture).class_names))
        model.to(device)
        theirs = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
        ours_s, theirs_s, ratios = list[float](), list[float](), list[float]()
        for number in range(arguments.rounds):
            mine = drive(config, mixture, objective, optimizer, num_steps, device, stop, waits=False)
            other = drive_peer(config, model, loss_of, theirs, stop)
            mine_s, other_s = ([sum(step.values()) for step in steps[WARM_UP:]] for steps in (mine, other))
            ours_s, theirs_s = [*ours_s, *mine_s], [*theirs_s, *other_s]
            ratios.append(median(other_s) / median(mine_s))
            print(f"{family}, round {number + 1}: ours {median(mine_s):.4f} s, theirs {median(other_s):.4f} s")
        batch = config.training.global_batch
        results[family] = {
            "ours_images_per_s": batch / median(ours_s),
            "theirs_images_per_s": batch / median(theirs_s),
            "ratio": median(theirs_s) / median(ours_s),
            "rounds": [min(ratios), max(ratios)],
            "trained parameters": [
                sum(p.numel() for p in part.parameters() if p.requires_grad) for part in (objective, model)
            ],
        }
    facts = recipe_facts(device=device, world_size=1, eager=True)
    text = json.dumps({**results, "device": device_name(device), "timm": timm.__version__, **facts}, indent=1)
    if arguments.out:
        write_atomically(arguments.out, (text + "\n").encode())
    print(text)


if __name__ == "__main__":
    main()
