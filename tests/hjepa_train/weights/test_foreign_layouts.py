"""Weights of published layouts give the features that plain code of that layout gives."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Features
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.jobs.weight_sources import Found, find
from hjepa_train.weights.fitting import Fitted, fit, put
from hjepa_train.weights.init_config import InitConfig
from tests.hjepa_train.weights.published_nets import (
    DEPTH,
    HEADS,
    PATCH,
    SIDE,
    WIDTH,
    Dino,
    Ijepa,
    Mae,
    SimmimVit,
    filled,
    under,
)

SIZES: dict[str, Any] = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch": PATCH}
EXCHANGED = (torch.arange(WIDTH) + WIDTH // 2) % WIDTH
"""Ours with fixed positions has the halves of all channels the other way round."""


def images(side: int = SIDE) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(4))


def begun(path: Path, vit: dict[str, Any], side: int = SIDE, **init: Any) -> tuple[Features, Found, Fitted]:
    """What a vision transformer makes of `images` with the weights in a file."""
    chosen = InitConfig(weights=str(path), **init)
    backbone = build_backbone("vit", VitConfig(**SIZES, **vit), side, seed=0).eval()
    found = find(chosen)
    fitted = fit(backbone, found.weights, leave=chosen.leave, where=found.source)
    put(backbone, fitted.tensors)
    with torch.no_grad():
        return backbone.encode(backbone.embed(images(side))), found, fitted


def saved(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def ijepa(tmp_path: Path) -> tuple[Path, Ijepa, Ijepa]:
    online, target = filled(Ijepa(), 1), filled(Ijepa(), 2)
    content = {
        "encoder": under("module.", online),
        "target_encoder": under("module.", target),
        "predictor": {"module.predictor_pos_embed": torch.zeros(1, 16, 8)},
        "opt": torch.optim.AdamW(online.parameters()).state_dict(),
        "scaler": None,
        "epoch": 300,
        "loss": 0.2,
    }
    return saved(tmp_path / "ijepa.pth.tar", content), online, target


def test_ijepa(ijepa: tuple[Path, Ijepa, Ijepa]) -> None:
    path, online, target = ijepa
    with torch.no_grad():
        for net, key in ((target, None), (online, "encoder")):
            features, found, fitted = begun(path, {}, key=key)
            assert found.weights.layout == "ijepa"
            assert_equal(features.tokens_BND, net(images())[:, :, EXCHANGED])
            assert_equal(features.pooled_BD, net(images()).mean(1)[:, EXCHANGED])
            assert any("halves of all channels" in note for note in fitted.notes)
    assert find(InitConfig(weights=str(path))).about["mean"] == [0.485, 0.456, 0.406]


def test_names_that_tell_nothing_and_files_that_hold_none_are_refused(tmp_path: Path) -> None:
    for content, message in (
        ({"model": {"rope_embed.periods": torch.ones(4)}}, "rotations inside each attention"),
        ({"epoch": 3}, "tensors by name expected, none found"),
        ({"a": {"w": torch.ones(3)}, "b": {"w": torch.ones(3)}}, "choose one with init.key"),
    ):
        with pytest.raises(InputError, match=message):
            find(InitConfig(weights=str(saved(tmp_path / "w.pt", {**content, "args": Namespace()}))))


LEARNT: dict[str, Any] = {"class_tokens": 1, "positions": "learnt"}


@pytest.mark.parametrize("positions", ["learnt", "sincos"])
def test_mae(tmp_path: Path, positions: str) -> None:
    """With its own table as it is, or with ours and the channels' halves exchanged."""
    net = filled(Mae())
    content = {"model": net.state_dict(), "args": Namespace(lr=1e-3), "epoch": 799}
    path = saved(tmp_path / "mae_pretrain.pth", content)
    order = EXCHANGED if positions == "sincos" else torch.arange(WIDTH)
    with torch.no_grad():
        expected = net(images())[..., order]
    for pool in ("mean", "class"):
        features, found, fitted = begun(path, {**LEARNT, "positions": positions, "pool": pool})
        assert found.weights.layout == "mae"
        assert features.prefix_BRD is not None
        assert_equal(features.tokens_BND, expected[:, 1:])
        assert_equal(features.prefix_BRD, expected[:, :1])
        assert_equal(features.pooled_BD, expected[:, 0] if pool == "class" else expected[:, 1:].mean(1))
    left = next(note for note in fitted.notes if note.startswith("no part of the backbone"))
    assert "mask_token, decoder_pos_embed, decoder_embed.weight" in left
    with pytest.raises(InputError, match=r"1 left over: cls_token; set backbone\.vit\.class_tokens: 1, or init\.leave"):
        begun(path, {})
    features, _, fitted = begun(path, {}, leave=("cls_token",))
    assert features.prefix_BRD is None
    assert "left as they are, by init.leave: cls_token" in fitted.notes
    net_without = filled(Ijepa())
    net_without.load_state_dict(net.state_dict() | {"pos_embed": net.pos_embed[:, 1:]}, strict=False)
    with torch.no_grad():
        assert_equal(features.tokens_BND, net_without(images())[..., EXCHANGED])


def test_dino(tmp_path: Path) -> None:
    student, teacher = filled(Dino(), 1), filled(Dino(), 2)
    heads = {"module.head.mlp.0.weight": torch.ones(3, 3), "module.head.last_layer.weight_v": torch.ones(2, 2)}
    content = {
        "student": under("module.backbone.", student) | heads,
        "teacher": under("module.backbone.", teacher) | heads,
        "dino_loss": {"center": torch.zeros(1, 8)},
        "args": Namespace(arch="vit_small"),
    }
    path = saved(tmp_path / "checkpoint.pth", content)
    alone = saved(tmp_path / "pretrain.pth", teacher.state_dict())
    with torch.no_grad():
        for where, net, key in ((path, teacher, None), (path, student, "student"), (alone, teacher, None)):
            features, found, _ = begun(where, {**LEARNT, "pool": "class"}, key=key)
            assert_equal(features.pooled_BD, net(images())[:, 0])
            assert_equal(features.tokens_BND, net(images())[:, 1:])
            assert found.weights.layout == ("timm" if where == alone else "dino")


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_dinov2(tmp_path: Path, num_registers: int, in_chunks: bool) -> None:
    net = filled(Dino(is_second=True, num_registers=num_registers))
    tensors = dict(net.state_dict())
    vit = {**LEARNT, "registers": num_registers, "layer_scale": 1e-5, "pool": "class"}
    if in_chunks:  # as it is saved while it trains
        tensors = {name.replace("blocks.", "blocks.0."): value for name, value in tensors.items()}
        content = {"teacher": {f"backbone.{name}": value for name, value in tensors.items()}}
        content["teacher"] |= {"dino_head.last_layer.weight": torch.ones(2, 2), "ibot_head.mlp.0.bias": torch.ones(2)}
    else:
        content = tensors
    features, found, fitted = begun(saved(tmp_path / "w.pth", content), vit)
    assert found.weights.layout == "dinov2"
    assert "mask_token" in fitted.notes[-1]
    with torch.no_grad():
        expected = net(images())
    assert features.prefix_BRD is not None
    assert_equal(features.prefix_BRD, expected[:, : 1 + num_registers])
    assert_equal(features.tokens_BND, expected[:, 1 + num_registers :])


def test_simmim(tmp_path: Path) -> None:
    net = filled(SimmimVit())
    content = {
        "model": under("encoder.", net)
        | {"decoder.0.weight": torch.ones(48, WIDTH, 1, 1), "decoder.0.bias": torch.ones(48)},
        "config": Namespace(),
    }
    vit = {"class_tokens": 1, "positions": "none", "relative_bias": True, "layer_scale": 0.1}
    features, found, fitted = begun(saved(tmp_path / "simmim.pth", content), vit)
    assert found.weights.layout == "simmim"
    assert "decoder.0.weight" in fitted.notes[-1]
    with torch.no_grad():
        assert features.prefix_BRD is not None
        assert_equal(torch.cat([features.prefix_BRD, features.tokens_BND], 1), net(images()))
    larger, _, fitted = begun(saved(tmp_path / "simmim.pth", content), vit, side=2 * SIDE)
    assert larger.grid == 2 * SIDE // PATCH
    assert "relative positions of 7 x 7 as 15 x 15" in fitted.notes


def test_one_table_of_relative_positions_for_all_blocks_is_that_of_each(tmp_path: Path) -> None:
    net: Any = filled(SimmimVit())
    with torch.no_grad():
        net.blocks[1].attn.relative_position_bias_table.copy_(net.blocks[0].attn.relative_position_bias_table)
    tensors = {name: value for name, value in net.state_dict().items() if "relative_position" not in name}
    tensors["rel_pos_bias.relative_position_bias_table"] = net.blocks[0].attn.relative_position_bias_table.detach()
    tensors["rel_pos_bias.relative_position_index"] = net.blocks[0].attn.relative_position_index
    vit = {"class_tokens": 1, "positions": "none", "relative_bias": True, "layer_scale": 0.1}
    features, found, _ = begun(saved(tmp_path / "beit.pth", {"model": tensors}), vit)
    assert found.weights.layout == "beit"
    with torch.no_grad():
        assert_equal(features.tokens_BND, net(images())[:, 1:])


def test_swin_as_its_authors_save_it_and_within_simmim(tmp_path: Path) -> None:
    """A stage's downsampling stands at its end there; the numbers are those of timm's network."""
    import timm

    sizes = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: Any = filled(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **sizes), 3)
    theirs = {
        name.replace("layers.1.downsample", "layers.0.downsample"): value for name, value in net.state_dict().items()
    }
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    simmim = {f"encoder.{name}": value for name, value in theirs.items()}
    simmim |= {"encoder.mask_token": torch.ones(1, 1, 12), "decoder.0.bias": torch.ones(3)}
    plain = theirs | {"head.weight": torch.ones(10, 24), "head.bias": torch.ones(10)}
    with torch.no_grad():
        expected = net.forward_features(images(32)).flatten(1, 2)
    for layout, tensors in (("swin", plain), ("simmim", simmim)):
        found = find(InitConfig(weights=str(saved(tmp_path / "swin.pth", {"model": tensors, "max_accuracy": 81.2}))))
        assert found.weights.layout == layout
        name, (model, _) = "swin", BACKBONES["swin"]
        config = model.model_validate({"width": 12, "depths": [2, 2], "heads": [2, 4], "patch": 2, "window": 4})
        backbone = build_backbone(name, config, 32, seed=0).eval()
        put(backbone, fit(backbone, found.weights, leave=(), where="here").tensors)
        with torch.no_grad():
            assert_equal(backbone.encode(backbone.embed(images(32))).tokens_BND, expected)


def test_another_resolution_takes_positions_between_those_that_were_learnt(tmp_path: Path) -> None:
    """As timm resizes them; a table for 37 x 37 cells (518 px in DINOv2) is one for 4 x 4."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    for before in (8, 37):
        net = filled(Dino(is_second=True, side=before))
        path = saved(tmp_path / "w.pth", dict(net.state_dict()))
        features, _, fitted = begun(path, {**LEARNT, "layer_scale": 1e-5})
        assert f"positions of {before} x {before} cells as 4 x 4" in fitted.notes
        with torch.no_grad():
            net.pos_embed.data = resample_abs_pos_embed(net.pos_embed, [4, 4])
            assert_equal(features.tokens_BND, net(images())[:, 1:])


def test_fixed_positions_of_another_resolution_are_computed_in_the_unit_that_the_weights_know(
    ijepa: tuple[Path, Ijepa, Ijepa],
) -> None:
    path, _, target = ijepa
    with pytest.raises(
        InputError, match=r"of 8 x 8 cells expected, of 4 x 4 found; set backbone\.vit\.position_grid: 4"
    ):
        begun(path, {}, 2 * SIDE)
    features, _, fitted = begun(path, {"position_grid": 4}, 2 * SIDE)
    assert any(note.startswith("positions of 4 x 4 cells as 8 x 8") for note in fitted.notes)
    column, row = (
        torch.arange(8.0)[None].expand(8, 8) * 0.5 - 0.25,
        torch.arange(8.0)[:, None].expand(8, 8) * 0.5 - 0.25,
    )
    omega = 10000.0 ** (-torch.arange(WIDTH // 4) / (WIDTH // 4))
    halves = [
        torch.cat([(axis.flatten()[:, None] * omega).sin(), (axis.flatten()[:, None] * omega).cos()], 1)
        for axis in (column, row)
    ]
    target.pos_embed.data = torch.cat(halves, 1)[None]
    with torch.no_grad():
        assert_equal(features.tokens_BND, target(images(2 * SIDE))[:, :, EXCHANGED])
    learnt, _, _ = begun(path, {"positions": "learnt"}, 2 * SIDE)
    with torch.no_grad():
        assert_equal(learnt.tokens_BND, target(images(2 * SIDE)))
