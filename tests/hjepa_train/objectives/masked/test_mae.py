import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from hjepa_shards.errors import InputError
from hjepa_train import evaluate, load_run_config, train
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.modules.layers import sincos_positions
from hjepa_train.objectives.base import Batch
from hjepa_train.objectives.masked.mae import Mae, MaeConfig
from hjepa_train.training.optimizer import OptimConfig, build_optimizer
from tests.checks import assert_images_do_not_meet, assert_objective_contract
from tests.hjepa_train.tiny import STEPS, tiny_run

DECODER = {"width": 32, "depth": 2, "heads": 2}


def build(seed: int = 0, **changes: Any) -> Mae:
    backbone = build_backbone("vit", VitConfig(width=24, depth=2, heads=2, patch=4), 24, seed=0)
    config = MaeConfig.model_validate({"decoder": DECODER, **changes})
    return Mae(backbone, config, image_size=24, num_steps=50, seed=seed)


def batch(num: int, *, first: int = 0, rows: int | None = None) -> Batch:
    """Of smooth pictures, which can be guessed from a part of them."""
    seeds = torch.arange(first, first + num)
    coarse = torch.stack([torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
    return Batch(
        images_BCHW=F.interpolate(coarse, size=24, mode="bicubic"),
        labels_B=seeds,
        positions_B=seeds,
        entry_B=seeds * 0,
        rows=rows or num,
    )


def test_mae_keeps_the_contract_of_objectives() -> None:
    assert_objective_contract(build, batch(6))
    assert_images_do_not_meet(build, batch(6))


def test_as_many_patches_are_hidden_in_every_image_as_the_ratio_says_and_others_at_each_position() -> None:
    visible, hidden = build().masks(torch.arange(2000))
    assert visible.shape == (2000, 9)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(36).expand(2000, -1))
    shares = F.one_hot(visible, 36).sum(1).float().mean(0)
    assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5
    again, _ = build().masks(torch.arange(500, 600))
    assert torch.equal(again, visible[500:600])
    assert not torch.equal(build(seed=1).masks(torch.arange(2000))[0], visible)


def test_nothing_of_a_hidden_patch_reaches_encoder_or_decoder() -> None:
    mae, one = build(), batch(4)
    visible, hidden = mae.masks(one.positions_B)

    def reconstructed(images: torch.Tensor) -> torch.Tensor:
        patches = mae.backbone.embed(images).take(visible)
        return mae.reconstruct(mae.backbone.encode(patches).tokens_BND, visible, hidden)

    cells = F.unfold(one.images_BCHW, 4, stride=4)
    cells = cells.scatter(2, hidden[:, None].expand(-1, cells.shape[1], -1), 1e3)
    other = F.fold(cells, (24, 24), 4, stride=4)
    assert not torch.equal(other, one.images_BCHW)
    assert torch.equal(reconstructed(other), reconstructed(one.images_BCHW))


def test_the_decoder_knows_where_tokens_are_and_not_in_which_order_they_come() -> None:
    mae = build()
    (visible, hidden), tokens = mae.masks(torch.arange(3)), torch.randn(3, 9, 24)
    with torch.no_grad():
        reconstructed = mae.reconstruct(tokens, visible, hidden)
        assert torch.allclose(mae.reconstruct(tokens.flip(1), visible.flip(1), hidden), reconstructed, atol=1e-5)
        assert torch.allclose(mae.reconstruct(tokens, visible, hidden.flip(1)), reconstructed.flip(1), atol=1e-5)
        assert not torch.allclose(mae.reconstruct(tokens, visible.flip(1), hidden), reconstructed, atol=1e-3), (
            "tokens elsewhere"
        )
        assert not torch.allclose(reconstructed, reconstructed[:, :1].expand_as(reconstructed), atol=1e-3), (
            "hidden patches are alike"
        )


@pytest.mark.parametrize("normalise", [True, False])
def test_the_targets_are_the_pixels_of_hidden_patches(normalise: bool) -> None:
    mae, one = build(normalise_patches=normalise), batch(2)
    _, hidden = mae.masks(one.positions_B)
    wanted = mae.wanted(one.images_BCHW, hidden)
    down, across = divmod(int(hidden[1, 5]), 6)
    patch = one.images_BCHW[1, :, 4 * down : 4 * down + 4, 4 * across : 4 * across + 4].flatten()
    expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt() if normalise else patch
    torch.testing.assert_close(wanted[1, 5], expected)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_papers_in_loops(normalise: bool) -> None:
    """Of hidden patches alone, each requested of the decoder at its own position, beside all visible tokens."""
    mae, one = build(normalise_patches=normalise).double(), batch(3)
    pixels, positions = one.images_BCHW.double(), sincos_positions(6, 32, extent=6).double()
    with torch.no_grad():
        loss, report = mae(replace(one, images_BCHW=pixels))
        visible, hidden = mae.masks(one.positions_B)
        encoded = mae.backbone.encode(mae.backbone.embed(pixels).take(visible)).tokens_BND
        expected = []
        for b in range(3):
            tokens = (mae.mask_token + positions).clone()
            for k, cell in enumerate(visible[b].tolist()):
                tokens[cell] = mae.project(encoded[b, k]) + positions[cell]
            tokens = tokens[None]
            for block in mae.blocks:
                tokens = block(tokens)
            said = mae.head(mae.norm(tokens))[0].tolist()
            total = 0.0
            for cell in hidden[b].tolist():
                down, across = 4 * (cell // 6), 4 * (cell % 6)
                patch = [
                    pixels[b, c, down + i, across + j].item() for c in range(3) for i in range(4) for j in range(4)
                ]
                if normalise:
                    mean = sum(patch) / 48
                    variance = sum((value - mean) ** 2 for value in patch) / 47
                    patch = [(value - mean) / math.sqrt(variance + 1e-6) for value in patch]
                total += sum((a - w) ** 2 for a, w in zip(said[cell], patch, strict=True)) / 48
            expected.append(total / 27)
    assert report["loss_B"].tolist() == pytest.approx(expected, rel=1e-10)
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-10)


def test_micro_batches_add_up_to_the_whole_step() -> None:
    gradients = []
    for parts in (1, 3):
        mae = build().double()
        for part in range(parts):
            piece = batch(6 // parts, first=6 // parts * part, rows=6)
            doubled = Batch(
                images_BCHW=piece.images_BCHW.double(),
                labels_B=piece.labels_B,
                positions_B=piece.positions_B,
                entry_B=piece.entry_B,
                rows=6,
            )
            loss, _ = mae(doubled)
            (loss / parts).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in mae.parameters() if p.grad is not None]))
    assert ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item() < 1e-10


def test_it_learns_to_reconstruct() -> None:
    mae = build(normalise_patches=False)
    optimizer = build_optimizer(mae, OptimConfig(lr=3e-3, weight_decay=0.0))
    losses = []
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = mae(batch(32, first=32 * (step % 4)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_ratio_that_hides_nothing_or_all_is_refused() -> None:
    with pytest.raises(InputError, match="of 36 patches some hidden and some visible expected, 0 visible found"):
        build(mask_ratio=0.99)


def test_a_run_of_mae_is_trained_resumed_and_evaluated_by_the_same_loop(shards: Path, tmp_path: Path) -> None:
    def config(name: str) -> Path:
        path = tiny_run(shards, tmp_path / name)
        content = yaml.safe_load(path.read_text())
        content["objective"] = {"mae": {"decoder": DECODER}}
        path.write_text(yaml.safe_dump(content))
        return path

    whole = train(load_run_config(config("whole")))
    pieces = load_run_config(config("pieces"))
    train(pieces, stop_after=13)
    run = train(pieces, resume="auto")
    curves = [
        [(row["step"], row["loss"], row["proof"]) for row in read_metrics(f / "metrics.jsonl")] for f in (whole, run)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == STEPS
    assert curves[0][-1][1] < curves[0][0][1]
    rows = [row["features"] for row in evaluate(run, probes=("knn",))["rows"]]
    assert rows == ["raw pixels", "PCA-30", "untrained", "encoder"]
    assert "encoder" in (run / "report.md").read_text()
