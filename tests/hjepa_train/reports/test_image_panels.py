"""Pictures show what masks and features are, and training does not notice that they were drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.decomposition import PCA
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_train import load_run_config, train
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, load
from hjepa_train.objectives.base import Batch, Objective, Sketch
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.masked.mae import Mae, MaeConfig
from hjepa_train.reports.image_panels import draw, last_pictures, look, main_axes, save_pictures
from tests.hjepa_train.tiny import PROBED, tiny_run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
VIT = VitConfig(width=24, depth=3, heads=2, patch=2)


def objective_of(name: str, **settings: Any) -> Objective:
    backbone = build_backbone("vit", VIT, 16, seed=0)
    if name == "mae":
        config = MaeConfig.model_validate({"decoder": {"width": 16, "depth": 1, "heads": 2}, **settings})
        return Mae(backbone, config, image_size=16, num_steps=10, seed=0)
    config = HJepaConfig.model_validate(
        {"momentum": 0.5, "predictor": {"width": 16, "depth": 1, "heads": 2}, **settings}
    )
    return HJepa(backbone, config, image_size=16, num_steps=10, seed=0)


def batch_of(num: int = 8, entries: list[int] | None = None) -> Batch:
    images = torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return Batch(
        images_BCHW=(images - mean) / std,
        labels_B=torch.zeros(num, dtype=torch.int64),
        positions_B=torch.arange(100, 100 + num),
        entry_B=torch.tensor(entries or [0] * num),
        rows=num,
    )


def drawn(objective: Objective, batch: Batch, num: int = 6) -> tuple[dict[str, torch.Tensor], torch.Tensor, Sketch]:
    found = look(objective, batch, num)
    assert found
    images, sketch = found
    return draw(images, sketch, mean=MEAN, std=STD), images, sketch


@pytest.mark.parametrize(
    ("name", "settings", "panels"),
    [
        ("hjepa", {"levels": 1}, ["level 0", "online features", "target features"]),
        ("hjepa", {"levels": 3}, ["level 0", "level 1", "level 2", "online features", "target features"]),
        ("hjepa", {"levels": "depth"}, ["level 0", "online features", "target features"]),
        ("mae", {}, ["visible patches", "reconstructed", "encoder features"]),
    ],
)
def test_every_family_shows_its_panels(name: str, settings: dict[str, Any], panels: list[str]) -> None:
    found, images, _ = drawn(objective_of(name, **settings), batch_of())
    assert len(images) == 6
    assert len(found) == 1 + len(panels)
    assert all(part in panel for part, panel in zip(["images", *panels], found, strict=True))
    for panel in found.values():
        assert panel.shape == (6, 3, 160, 160)
        assert 0 <= panel.min() < panel.max() <= 1


def test_images_are_shown_as_they_were_before_normalisation() -> None:
    found, _, _ = drawn(objective_of("mae"), batch_of())
    plain = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found["images"][:, :, 5::10, 5::10], plain[:6], atol=1e-6, rtol=0)


def test_masks_are_those_that_the_objective_trains_with() -> None:
    objective, batch = objective_of("hjepa", levels=3), batch_of()
    assert isinstance(objective, HJepa)
    found, _, sketch = drawn(objective, batch)
    masks = objective.masking(batch.positions_B[:6])
    visible = torch.zeros(6, 64, dtype=torch.bool).scatter(1, masks.context_BK, True)
    assert sketch.hidden_BN is not None
    assert torch.equal(sketch.hidden_BN, ~visible)
    assert torch.equal(sketch.blocks[0], masks.block_BMN)
    # a coarse cell is a target where a hidden patch of the block is in it
    for level, stride in ((1, 2), (2, 4)):
        side = 8 // stride
        cells = masks.block_BMN.view(6, 4, side, stride, side, stride).any(5).any(3).flatten(2)
        assert torch.equal(sketch.blocks[level], cells)
    # visible patches keep their pixels, the others go to grey, outlines are at the borders of blocks alone
    plain, seen = found["images"], found["visible patches and targets, level 0"]
    centre = (slice(None), slice(None), slice(10, None, 20), slice(10, None, 20))
    patches, shown = plain[centre].flatten(2), seen[centre].flatten(2)
    assert torch.equal(shown.transpose(1, 2)[visible], patches.transpose(1, 2)[visible])
    far = (patches - 0.5).abs() > 0.1
    assert (((shown - 0.5).abs() < 0.2 * (patches - 0.5).abs()) | ~far).transpose(1, 2)[~visible].all()
    dimmed = plain + (0.5 - plain) * 0.82 * sketch.hidden_BN.view(6, 1, 8, 8).repeat_interleave(
        20, 2
    ).repeat_interleave(20, 3)
    touched = (seen - dimmed).abs().amax(1) > 0.02
    in_a_block = masks.block_BMN.any(1).view(6, 8, 8).repeat_interleave(20, 1).repeat_interleave(20, 2)
    assert touched.any()
    assert not (touched & ~in_a_block).any()


@pytest.mark.parametrize("normalise", [True, False])
def test_what_a_perfect_decoder_reconstructs_is_the_image(normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = objective_of("mae", normalise_patches=normalise), batch_of(6)
    assert isinstance(objective, Mae)
    wanted = objective.wanted
    monkeypatch.setattr(objective, "reconstruct", lambda tokens, visible, hidden: wanted(batch.images_BCHW, hidden))
    _, images, sketch = drawn(objective, batch)
    assert sketch.reconstructed_BCHW is not None
    torch.testing.assert_close(sketch.reconstructed_BCHW, images, atol=1e-5, rtol=1e-4)


def test_visible_patches_stay_and_hidden_ones_are_reconstructed() -> None:
    objective = objective_of("mae")
    assert isinstance(objective, Mae)
    _, images, sketch = drawn(objective, batch_of())
    visible, hidden = objective.masks(batch_of().positions_B[:6])
    assert sketch.hidden_BN is not None
    assert sketch.reconstructed_BCHW is not None
    assert torch.equal(sketch.hidden_BN.nonzero()[:, 1].view(6, -1), hidden.sort(1).values)
    same = (sketch.reconstructed_BCHW == images).all(1).view(6, 8, 2, 8, 2).all(4).all(2).flatten(1)
    assert torch.equal(same.nonzero()[:, 1].view(6, -1), visible.sort(1).values)


def test_the_main_axes_are_those_of_scikit_learn() -> None:
    tokens = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([9.0, 1, 4, 2, 0.5]) + 3
    expected = PCA(3).fit(tokens.flatten(0, 1).numpy())
    scores = expected.transform(tokens.flatten(0, 1).numpy())
    scores *= np.sign(expected.components_[np.arange(3), np.abs(expected.components_).argmax(1)])
    low, high = np.quantile(scores, [0.01, 0.99], axis=0)
    scores = np.clip((scores - low) / (high - low), 0, 1).reshape(2, 4, 4, 3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(main_axes(tokens, 4).numpy(), scores, atol=1e-5)


@pytest.mark.parametrize(
    "tokens", [torch.full((2, 4, 5), 2.5), torch.full((2, 4, 5), float("nan")), torch.ones(2, 4, 2)]
)
def test_features_without_variance_or_not_finite_are_grey(tokens: torch.Tensor) -> None:
    assert torch.equal(main_axes(tokens, 2), torch.full((2, 3, 2, 2), 0.5))


def test_images_come_from_each_source_in_turn() -> None:
    _, images, _ = drawn(objective_of("mae"), batch := batch_of(8, [1, 1, 1, 1, 0, 1, 2, 1]), num=4)
    assert torch.equal(images, batch.images_BCHW[[4, 0, 6, 1]])
    _, images, _ = drawn(objective_of("mae"), batch_of(2), num=6)
    assert len(images) == 2


@pytest.mark.parametrize("name", ["hjepa", "mae"])
def test_looking_leaves_modes_weights_gradients_and_generators_as_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(name)
    objective.train()
    next(iter(objective.children())).eval()  # a part that was frozen stays so
    modes = [module.training for module in objective.modules()]
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    sketch = objective.sketch

    def random_sketch(batch: Batch) -> Sketch | None:
        assert not objective.training
        assert not torch.is_grad_enabled()
        torch.rand(1)
        return sketch(batch)

    monkeypatch.setattr(objective, "sketch", random_sketch)
    assert look(objective, batch_of())
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in objective.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())


HJEPA = {"hjepa": {"levels": 2, "momentum": 0.8, "predictor": {"width": 16, "depth": 1, "heads": 2}}}
MAE = {"mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}}}


def outcome(shards: Path, folder: Path, objective: dict[str, Any], **changes: Any) -> tuple[list[dict[str, Any]], Any]:
    path = tiny_run(shards, folder, **changes)
    content = yaml.safe_load(path.read_text())
    content["objective"] = objective
    path.write_text(yaml.safe_dump(content))
    run = train(load_run_config(path), stop_after=5)
    rows = read_metrics(run / "metrics.jsonl")
    for row in rows:
        row.pop("images_per_s")
        row.pop("data_wait")
    newest = latest(run / "checkpoints")
    assert newest
    return rows, load(newest)


@pytest.mark.parametrize("objective", [HJEPA, MAE])
def test_metrics_and_weights_are_bit_for_bit_the_same_with_pictures_and_without(
    shards: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    with_rows, with_state = outcome(
        shards, tmp_path / "with", objective, logging__images_every=1, logging__tensorboard=True
    )
    rows, state = outcome(shards, tmp_path / "without", objective, logging__images_every=0, logging__tensorboard=False)
    assert (tmp_path / "with/tiny/pictures.png").exists()
    assert not (tmp_path / "without/tiny/pictures.png").exists()
    assert with_rows == rows
    assert with_state.model.keys() == state.model.keys()
    assert all(torch.equal(value, state.model[key]) for key, value in with_state.model.items())
    for number, moments in state.optimizer["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, with_state.optimizer["state"][number][key])


def test_a_run_draws_at_its_log_points_and_at_its_end(shards: Path, tmp_path: Path) -> None:
    drawn = {"logging__every_steps": 5, "logging__images_every": 2, "logging__tensorboard": True}
    path = tiny_run(shards, tmp_path, evaluation=PROBED, **drawn)
    run = train(load_run_config(path))
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    board.Reload()
    tags = board.Tags()
    assert set(tags["images"]) == {
        "pictures/images",
        "pictures/visible patches and targets, level 0",
        "pictures/visible patches and targets, level 1",
        "pictures/online features, three main axes as colours",
        "pictures/target features, three main axes as colours",
    }
    assert {event.step for tag in tags["images"] for event in board.Images(tag)} == {0, 10, 20, 30, 35}
    assert set(tags["histograms"]) == {
        "sources/share minus target, points",
        "features/online: deviation of each dimension",
        "features/target: deviation of each dimension",
    }
    groups: dict[str, set[str]] = {}
    for tag in tags["scalars"]:
        group, _, name = tag.partition("/")
        groups.setdefault(group, set()).add(name)
    assert set(groups) == {"learning", "pace", "probes", "sources"}
    assert groups["pace"] == {"position", "lr", "images_per_s", "data_wait"}
    assert groups["probes"] == {f"{kind}_{encoder}" for kind in ("knn", "ridge") for encoder in ("online", "target")}
    assert {"digits/loss", "photos/share"} <= groups["sources"]
    assert {"loss_l1", "rho_l0", "rankme"} <= groups["learning"]
    assert board.Scalars("pace/position")[-1].value == 16 * 36
    assert [event.step for event in board.Histograms("sources/share minus target, points")] == [
        0,
        5,
        10,
        15,
        20,
        25,
        30,
        35,
    ]
    assert board.Histograms("features/target: deviation of each dimension")[-1].histogram_value.num == 24
    strips, said = last_pictures(run)
    assert said.startswith("Drawn at step 35")
    assert len(strips) == 5


def test_saved_pictures_come_back_as_strips(tmp_path: Path) -> None:
    panels = {"one": torch.rand(3, 3, 20, 20), "two <b>": torch.rand(3, 3, 20, 20)}
    save_pictures(tmp_path / "pictures.png", panels, 1234)
    with Image.open(tmp_path / "pictures.png") as opened:
        sheet = np.asarray(opened.convert("RGBA"))
    assert sheet.shape == (44, 68, 4)
    expected = (panels["two <b>"][2] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[24:, 48:, :3], expected)
    assert (sheet[20:24, :, 3] == 0).all()
    strips, said = last_pictures(tmp_path)
    assert [strip.title for strip in strips] == ["one", "two <b>"]
    assert "step 1,234" in said


def test_pictures_that_are_none_are_said(tmp_path: Path) -> None:
    assert last_pictures(tmp_path) == ([], "")
    (tmp_path / "pictures.png").write_bytes(b"no picture")
    strips, said = last_pictures(tmp_path)
    assert not strips
    assert "cannot be read" in said
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures.png")
    assert "cannot be read" in last_pictures(tmp_path)[1]
