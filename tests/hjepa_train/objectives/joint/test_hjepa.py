"""H-JEPA against its definition; that one step is the same for every split of a batch is in test_one_step.py."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base import schedules
from hjepa_train.data.augment import normalise
from hjepa_train.modules.anticollapse import vicreg
from hjepa_train.modules.block_masks import Masking
from hjepa_train.modules.layers import sincos_positions
from hjepa_train.objectives.base import Batch
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.joint.predictor import PredictorConfig
from hjepa_train.training.optimizer import OptimConfig, build_optimizer, set_rates
from tests.checks import assert_images_do_not_meet, assert_objective_contract, signals_of

IMAGE_SIZE, NUM_STEPS = 32, 4
NANO = VitConfig(width=32, depth=3, heads=2, patch=4)
SETTINGS = {"predictor": PredictorConfig(width=16, depth=2, heads=2), "momentum": 0.2}


def build(seed: int = 0, **changed) -> HJepa:
    config = HJepaConfig(**(SETTINGS | changed))
    backbone = build_backbone("vit", NANO, IMAGE_SIZE, seed=seed)
    return HJepa(backbone, config, image_size=IMAGE_SIZE, num_steps=NUM_STEPS, seed=seed)


def images(num: int) -> torch.Tensor:
    return torch.randn(num, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def batch(pixels: torch.Tensor, first: int = 0) -> Batch:
    positions = torch.arange(first, first + len(pixels))
    return Batch(images_BCHW=pixels, labels_B=positions, positions_B=positions, entry_B=positions * 0, rows=len(pixels))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"levels": 1, "anticollapse": "none"},
        {"levels": "depth", "anticollapse": "sigreg"},
        {"levels": 2, "statistics": "exact"},
    ],
)
def test_hjepa_keeps_the_objective_contract(changed) -> None:
    assert_objective_contract(lambda: build(**changed), batch(images(8)))
    assert_images_do_not_meet(lambda: build(**changed), batch(images(8)))


@pytest.mark.parametrize("levels", [1, 3, "depth"])
def test_loss_equals_the_definition_written_with_loops(levels) -> None:
    hjepa = build(levels=levels, anticollapse="none").double()
    pixels, grid, weights = images(3).double(), 8, [1.0, 0.5, 0.25]
    with torch.no_grad():
        for parameter in hjepa.target.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        loss, metrics = hjepa(batch(pixels))
        masks = hjepa.masking(torch.arange(3))
        context = hjepa.encode_context(pixels, masks)
        predictions = hjepa.predictor(context, masks)
        features = hjepa.target.encode(hjepa.target.embed(pixels), (1, 2, 3))
    blocks = masks.block_BMN.numpy()
    expected = np.zeros(3)
    for level, predicted in enumerate(predictions):
        stride = 1 if levels == "depth" else (1, 2, 4)[level]
        source = (features.stages[level] if levels == "depth" else features.tokens_BND).numpy()
        cells = masks.levels[0 if levels == "depth" else level]
        for b in range(3):
            for m in range(4):
                total = mass = 0.0
                for c, cell in enumerate(cells.index_BMC[b, m].tolist()):
                    row, column = divmod(cell, grid // stride)
                    inside = [
                        (row * stride + i) * grid + column * stride + j for i in range(stride) for j in range(stride)
                    ]
                    target = source[b, inside].mean(0)
                    target = (target - target.mean()) / np.sqrt(target.var() + 1e-5)
                    weight = blocks[b, m, inside].sum() / stride**2
                    error = np.abs(predicted[b, m, c].numpy() - target)
                    total += weight * np.where(error < 1, error**2 / 2, error - 0.5).mean()
                    mass += weight
                expected[b] += weights[level] * total / mass / 4
    np.testing.assert_allclose(metrics["loss_B"].numpy(), expected, rtol=1e-10)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-10)


@pytest.mark.parametrize(
    ("width", "weights", "given"),
    [
        (192, (0.25, 0.01), {}),
        (196, (0.025, 0.001), {}),
        (196, (0.5, 0.125), {"variance_weight": 0.5, "covariance_weight": 0.125}),
    ],
)
def test_the_term_against_collapse_enters_by_the_weights_of_its_width(width, weights, given) -> None:
    backbone = build_backbone("vit", VitConfig(width=width, depth=1, heads=2, patch=4), IMAGE_SIZE, seed=0)
    config = HJepaConfig(**SETTINGS, **given)
    hjepa = HJepa(backbone, config, image_size=IMAGE_SIZE, num_steps=NUM_STEPS, seed=0).double()
    pixels = images(6).double()
    with torch.no_grad():
        loss, metrics = hjepa(batch(pixels))
        masks = hjepa.masking(torch.arange(6))
        variance, covariance = vicreg(hjepa.encode_context(pixels, masks), masks.context_BK, 64)
    expected = metrics["loss_B"].mean().item() + weights[0] * variance.item() + weights[1] * covariance.item()
    assert min(weights[0] * variance.item(), weights[1] * covariance.item()) > 1e-6 * expected
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_predictions_are_requested_at_the_centres_of_each_levels_cells() -> None:
    hjepa = build().double()
    predictor, masks = hjepa.predictor, hjepa.masking(torch.arange(3))
    seen = []
    predictor.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs))
    context = torch.randn(3, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predictor.level_embedding.copy_(torch.arange(3.0)[:, None] + 1)
        predictor(context, masks)
        [(tokens, visible)] = seen
        for b in range(3):
            for m in range(4):
                expected, real = [], [True] * 16
                for k, cell in enumerate(masks.context_BK[b].tolist()):
                    expected.append(predictor.project(context[b, k]) + sincos_positions(8, 16, extent=8)[cell])
                for level, stride in enumerate((1, 2, 4)):
                    table = sincos_positions(8 // stride, 16, extent=8)
                    for cell in masks.levels[level].index_BMC[b, m].tolist():
                        expected.append(table[cell] + predictor.mask_token + level + 1)
                    real += (masks.levels[level].weight_BMC[b, m] > 0).tolist()
                torch.testing.assert_close(tokens[4 * b + m], torch.stack(expected), rtol=1e-10, atol=1e-10)
                assert visible[4 * b + m].tolist() == real


def test_masked_pixels_do_not_reach_the_context_encoder() -> None:
    hjepa = build()
    masks = hjepa.masking(torch.arange(4))
    hidden = torch.ones(4, 64, dtype=torch.bool).scatter(1, masks.context_BK, False).view(4, 1, 8, 8)
    hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    pixels = images(4)
    perturbed = torch.where(hidden, torch.nan, pixels)
    assert torch.equal(hjepa.encode_context(pixels, masks), hjepa.encode_context(perturbed, masks))


@pytest.mark.parametrize("levels", [3, "depth"])
def test_no_gradient_reaches_the_target(levels) -> None:
    hjepa = build(levels=levels)
    loss, _ = hjepa(batch(images(4)))
    loss.backward()
    assert all(not p.requires_grad and p.grad is None for p in hjepa.target.parameters())
    assert not any(target.requires_grad for target in hjepa.targets(images(4)))


def test_the_target_is_the_closed_form_of_its_average() -> None:
    hjepa = build()
    name = "blocks.0.mlp.fc1.weight"
    history = [hjepa.backbone.get_parameter(name).detach().clone()]
    for step in range(NUM_STEPS):
        with torch.no_grad():
            for parameter in hjepa.backbone.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        history.append(hjepa.backbone.get_parameter(name).detach().clone())
        hjepa.after_step(step, torch.tensor(True))
    m = [1 - 0.8 * (1 - t / NUM_STEPS) for t in range(NUM_STEPS)]
    expected = np.prod(m) * history[0]
    for t in range(NUM_STEPS):
        expected = expected + (1 - m[t]) * np.prod(m[t + 1 :]) * history[t + 1]
    torch.testing.assert_close(hjepa.target.get_parameter(name).detach(), expected.float())


@pytest.mark.parametrize("levels", [1, 3])
def test_predictions_do_not_depend_on_padding(levels) -> None:
    hjepa = build(levels=levels)
    plain, _ = hjepa(batch(images(6)))
    hjepa.masking = Masking(8, seed=0, num_blocks=4, num_context=16, strides=hjepa.masking.strides, num_padding=5)
    padded, _ = hjepa(batch(images(6)))
    assert padded.item() == pytest.approx(plain.item(), abs=1e-6)


def test_nothing_is_predicted_from_the_pixels_of_the_target() -> None:
    """Changing hidden pixels changes the targets, never the predictions."""
    hjepa = build()
    masks = hjepa.masking(torch.arange(4))
    hidden = torch.ones(4, 64, dtype=torch.bool).scatter(1, masks.context_BK, False).view(4, 1, 8, 8)
    hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    pixels = images(4)
    perturbed = torch.where(hidden, -pixels, pixels)
    for ours, theirs in zip(
        *[hjepa.predictor(hjepa.encode_context(x, masks), masks) for x in (pixels, perturbed)], strict=True
    ):
        assert torch.equal(ours, theirs)
    assert not torch.equal(hjepa.targets(pixels)[0], hjepa.targets(perturbed)[0])


def test_the_last_block_computes_what_a_whole_one_would() -> None:
    hjepa = build(levels=1)
    block = hjepa.predictor.blocks[0]
    tokens = torch.randn(5, 28, 16, generator=torch.Generator().manual_seed(0))
    visible = torch.rand(5, 28, generator=torch.Generator().manual_seed(1)) < 0.8
    torch.testing.assert_close(block(tokens, visible, wanted=12), block(tokens, visible)[:, -12:])


@pytest.mark.parametrize("levels", [3, "depth"])
def test_signals_are_their_definitions_written_with_loops(levels) -> None:
    """ρ and the gap compare an image with all others, never with a mean in which it is itself."""
    num, hjepa = 5, build(levels=levels).double()
    pixels = images(num).double()
    with torch.no_grad():
        for parameter in hjepa.target.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        masks = hjepa.masking(torch.arange(num))
        context = hjepa.encode_context(pixels, masks)
        predictions, targets = hjepa.predictor(context, masks), hjepa.targets(pixels)
    found = signals_of(hjepa, batch(pixels), micro_batch=2)
    for level, (predicted, target) in enumerate(zip(predictions, targets, strict=True)):
        cells = masks.levels[0 if levels == "depth" else level]
        loss = by_position = gap = 0.0
        for b in range(num):
            others = [other for other in range(num) if other != b]
            for m in range(4):
                mass = cells.weight_BMC[b, m].sum().item()
                for c, cell in enumerate(cells.index_BMC[b, m].tolist()):
                    share, own, mine = cells.weight_BMC[b, m, c].item() / mass, target[b, cell], predicted[b, m, c]
                    mean = target[others, cell].mean(0)
                    loss += share * F.smooth_l1_loss(mine, own).item()
                    by_position += share * F.smooth_l1_loss(mean, own).item()
                    to_others = sum(torch.cosine_similarity(mine, target[other, cell], dim=0) for other in others)
                    gap += share * (torch.cosine_similarity(mine, own, dim=0) - to_others / (num - 1)).item()
        assert found[f"rho_l{level}"] == pytest.approx(loss / by_position, rel=1e-9)
        assert found[f"gap_l{level}"] == pytest.approx(gap / num / 4, rel=1e-9)
    fine = targets[0].numpy()
    within = fine.var(0, ddof=1).sum(-1).mean()
    assert found["positional_share"] == pytest.approx(1 - within / fine.reshape(-1, 32).var(0, ddof=1).sum(), rel=1e-9)
    squares, freedom = np.zeros(32), 0
    for position in range(64):
        tokens = context[masks.context_BK == position].numpy()
        if len(tokens):
            squares += ((tokens - tokens.mean(0)) ** 2).sum(0)
            freedom += len(tokens) - 1
    assert found["sd"] == pytest.approx(np.sqrt(squares / freedom).mean(), rel=1e-9)
    pooled = targets[-1 if levels == "depth" else 0].numpy().mean(1)
    sigma = np.linalg.svd(pooled - pooled.mean(0), compute_uv=False)
    share = sigma[: num - 1] / sigma[: num - 1].sum()
    assert found["rankme"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)
    assert found["rankme_cap"] == num - 1


def test_a_level_of_weight_zero_trains_nothing() -> None:
    hjepa = build(levels=2, level_weights=(1.0, 0.0))
    loss, _ = hjepa(batch(images(8)))
    loss.backward()
    first, second = hjepa.predictor.heads
    assert all((p.grad != 0).any() for p in first.parameters())
    assert all((p.grad == 0).all() for p in second.parameters())
    assert any((p.grad != 0).any() for p in hjepa.backbone.parameters())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": 0}, "1 level or more"),
        ({"levels": "deep"}, "levels"),
        ({"use_vicreg": True}, "unknown key `use_vicreg`"),
        ({"anticolapse": "none"}, "did you mean `anticollapse`"),
        ({"momentum": 1.0}, "momentum"),
        ({"predictor": {"width": 50, "heads": 4}}, "divisible by 4 and by heads"),
    ],
)
def test_wrong_configurations_are_refused(changed, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(HJepaConfig, changed, "mix.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": 4}, "4 rising strides expected"),
        ({"strides": (1, 3, 4)}, r"possible: \[1, 2, 4\]"),
        ({"strides": (1, 2, 8)}, "2 or more cells a side"),
        ({"levels": 2, "strides": (2, 1)}, "2 rising strides"),
        ({"levels": "depth", "strides": (1, 2)}, "takes no strides"),
        ({"levels": 2, "level_weights": (1.0, 0.5, 0.25)}, "level_weights: 2 of 0 or more"),
        ({"level_weights": (1.0, -1.0, 0.0)}, "level_weights: 3 of 0 or more"),
        ({"num_context": 63}, "num_context <= 60"),
        ({"momentum": 0.996}, "train longer or set `momentum: 0."),
    ],
)
def test_settings_that_do_not_fit_the_grid_or_the_run_are_refused(changed, message) -> None:
    with pytest.raises(InputError, match=message):
        build(**changed)


def test_the_advised_momentum_is_accepted() -> None:
    build(momentum=schedules.largest_momentum(NUM_STEPS))


def photo_tiles(num: int) -> torch.Tensor:
    photos = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in load_sample_images().images]
    tiles = torch.cat([p.unfold(1, 32, 32).unfold(2, 32, 32).flatten(1, 2).transpose(0, 1) for p in photos])
    tiles = tiles[:: len(tiles) // num][:num].float()
    return normalise(tiles, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_sixty_four_images_are_overfitted_without_collapse() -> None:
    num_steps, pixels = 50, photo_tiles(64)
    config = HJepaConfig(
        levels=1,
        anticollapse="none",
        predictor=PredictorConfig(width=32, depth=2, heads=2),
        momentum=schedules.largest_momentum(num_steps),
    )
    backbone = build_backbone("vit", VitConfig(width=48, depth=2, heads=2, patch=4), 32, seed=0)
    hjepa = HJepa(backbone, config, image_size=32, num_steps=num_steps, seed=0)
    optimizer = build_optimizer(hjepa, OptimConfig(lr=3e-3))
    assert signals_of(hjepa, batch(pixels))["rho_l0"] > 1
    for step in range(num_steps):
        loss, _ = hjepa(batch(pixels, first=64 * step))
        optimizer.zero_grad()
        loss.backward()
        lr = schedules.learning_rate(step, num_steps, peak=3e-3, warmup_steps=5)
        set_rates(optimizer, lr=lr, weight_decay=0.05)
        optimizer.step()
        hjepa.after_step(step, torch.tensor(True))
    found = signals_of(hjepa, batch(pixels, first=64 * num_steps))
    assert found["rho_l0"] < 0.5
    assert found["gap_l0"] > 0.3
