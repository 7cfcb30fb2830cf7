import pytest
import torch

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.vit import DeitConfig, VitConfig
from tests.checks import (
    assert_backbone_contract,
    assert_flops_are_those_of_a_pass,
    assert_timm_gives_the_same,
    num_parameters,
)

SHAPE = {"width": 32, "depth": 3, "heads": 2, "patch": 4}
NANO = VitConfig(**SHAPE)
VARIANTS = [
    {},
    {"class_tokens": 1, "positions": "learnt", "pool": "class"},
    {"class_tokens": 1, "positions": "learnt", "registers": 2, "layer_scale": 0.1},
    {"class_tokens": 1, "registers": 2},
    {"positions": "none", "relative_bias": True, "layer_scale": 0.5},
    {"class_tokens": 1, "positions": "none", "relative_bias": True},
]


def named(variant: dict[str, object]) -> str:
    return " ".join(variant) or "plain"


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
@pytest.mark.parametrize("drops", [{"drop_path": 0.6}, {"dropout": 0.3}], ids=named)
def test_vit_keeps_the_backbone_contract(variant, drops) -> None:
    config = VitConfig(**SHAPE, **variant, **drops)
    assert_backbone_contract(lambda: moved(build_backbone("vit", config, 24, seed=5)), 24)


def test_deit_keeps_the_backbone_contract() -> None:
    config = DeitConfig(**SHAPE, drop_path=0.6)
    assert_backbone_contract(lambda: moved(build_backbone("deit", config, 24, seed=5)), 24)


def moved(backbone):
    """Tables of relative positions begin at 0, where no position would be seen."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "relative_position" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
    return backbone


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_timm_gives_the_features_of_every_variant(variant) -> None:
    backbone = build_backbone("vit", VitConfig(**SHAPE, **variant), 24, seed=1)
    assert_flops_are_those_of_a_pass(backbone, 24)
    assert_timm_gives_the_same(backbone, 24)


def test_timm_gives_the_features_of_deit() -> None:
    """The mean of both its tokens, as the mean of both heads would be."""
    assert_timm_gives_the_same(build_backbone("deit", DeitConfig(**SHAPE), 24, seed=1), 24)


def test_deits_two_tokens_come_first() -> None:
    deit = build_backbone("deit", DeitConfig(**SHAPE, registers=3), 24, seed=1).eval()
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    features = deit.encode(deit.embed(images))
    assert features.prefix_BRD.shape == (2, 5, 32)
    torch.testing.assert_close(features.pooled_BD, features.prefix_BRD[:, :2].mean(1))
    with torch.no_grad():
        deit.dist_token += 1
    again = deit.encode(deit.embed(images)).prefix_BRD
    assert (again - features.prefix_BRD).abs().amax((0, 2)).argmax() == 1


@pytest.mark.parametrize(
    ("size", "patch", "headless", "whole"),
    [
        ("tiny", 16, 5_524_416, 5_717_416),
        ("small", 16, 21_665_664, 22_050_664),
        ("base", 16, 85_798_656, 86_567_656),
        ("large", 16, 303_301_632, 304_326_632),
        ("huge", 14, 630_764_800, 632_045_800),
    ],
)
def test_vit_has_the_published_number_of_parameters(size, patch, headless, whole) -> None:
    config = {"size": size, "patch": patch, "class_tokens": 1, "positions": "learnt"}
    assert num_parameters("vit", config) == (headless, whole)
    fixed = num_parameters("vit", {"size": size, "patch": patch})[0]
    width = (whole - headless) // 1000 - 1
    assert headless - fixed == width * (2 + (224 // patch) ** 2)  # the class token and the table


@pytest.mark.parametrize(("size", "whole"), [("tiny", 5_910_800), ("small", 22_436_432), ("base", 87_338_192)])
def test_deit_has_the_published_number_of_parameters(size, whole) -> None:
    """With a head for each of its two tokens."""
    headless, one_head = num_parameters("deit", {"size": size, "patch": 16})
    assert 2 * one_head - headless == whole


def test_learnt_positions_begin_as_the_fixed_ones_and_are_between_those_at_another_resolution() -> None:
    fixed, learnt = (
        build_backbone("vit", VitConfig(**SHAPE, positions=p), 32, seed=0).eval() for p in ("sincos", "learnt")
    )
    assert torch.equal(learnt.pos_embed, fixed.pos_embed)
    from timm.layers import resample_abs_pos_embed

    theirs = resample_abs_pos_embed(learnt.pos_embed, [12, 12], num_prefix_tokens=0)
    torch.testing.assert_close(learnt._positions(12), theirs[0])
    assert learnt.encode(learnt.embed(torch.zeros(1, 3, 48, 48))).grid == 12


@pytest.mark.parametrize(
    ("config", "image_size"),
    [(VitConfig(size="tiny", patch=8), 64), (VitConfig(width=96, depth=2, heads=3, patch=4), 32)],
)
def test_timm_loads_the_state_and_gives_the_same_features(config, image_size) -> None:
    vit = build_backbone("vit", config, image_size, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms and biases that are not 1 and 0
        for parameter in vit.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    width, depth, heads = config.shape
    import timm  # seconds, for this test alone

    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=image_size,
        patch_size=config.patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        num_classes=0,
    ).eval()
    theirs.load_state_dict(vit.state_dict(), strict=True)
    images = torch.randn(2, 3, image_size, image_size, generator=generator)
    with torch.no_grad():
        ours = vit.encode(vit.embed(images), stages=(depth,))
        torch.testing.assert_close(ours.pooled_BD, theirs(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.tokens_BND, theirs.forward_features(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.norm(ours.stages[0]), ours.tokens_BND, atol=1e-5, rtol=1e-5)


def test_positions_of_another_resolution_are_between_those_of_training() -> None:
    """Twice the resolution: the mean angle of the four small cells of a large one is that of its centre."""
    vit = build_backbone("vit", VitConfig(width=4, depth=1, heads=1, patch=4), 32, seed=0)
    table = vit.pos_embed[0].view(8, 8, 4)
    sine, cosine = torch.tensor(2.0).sin(), torch.tensor(2.0).cos()
    torch.testing.assert_close(table[2, 5, :2], torch.stack([sine, cosine]))  # width 4: one frequency, 1
    finer = vit._positions(16).view(16, 16, 4)
    torch.testing.assert_close(finer[4, 0, 0], torch.tensor(2.0 - 0.25).sin())
    torch.testing.assert_close(finer[5, 0, 0], torch.tensor(2.0 + 0.25).sin())
    images = torch.zeros(1, 3, 64, 64)
    assert vit.encode(vit.embed(images)).tokens_BND.shape == (1, 256, 4)


def test_content_and_position_start_at_equal_size() -> None:
    vit = build_backbone("vit", VitConfig(size="tiny", patch=4), 32, seed=0)
    content = vit.embed(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))).tokens_BND
    assert content.std().item() == pytest.approx(1.0, rel=0.05)
    assert vit.pos_embed.square().mean().item() == pytest.approx(0.5)
    assert all((p == 0).all() for name, p in vit.named_parameters() if name.endswith("bias"))
    qkv = vit.blocks[0].attn.qkv.weight
    assert qkv.abs().max().item() == pytest.approx((6 / (192 + 576)) ** 0.5, rel=1e-3)


def test_seeds_make_different_weights() -> None:
    a, b = (build_backbone("vit", NANO, 24, seed=seed) for seed in (0, 1))
    assert not torch.equal(a.patch_embed.proj.weight, b.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"patch": 4}, "all of width, depth and heads"),
        ({"patch": 4, "width": 96, "depth": 4}, "all of width, depth and heads"),
        ({"patch": 4, "size": "tiny", "width": 96}, "either it or those three"),
        ({"patch": 4, "width": 98, "depth": 1, "heads": 2}, "divisible by 4 and by heads"),
        ({"patch": 4, "size": "tiny", "droppath": 0.1}, "unknown key `droppath`"),
        ({"size": "tiny"}, "patch"),
        ({"patch": 4, "size": "tiny", "pool": "class"}, "`pool: class` needs a class token; set `class_tokens: 1`"),
        ({"patch": 4, "size": "tiny", "distillation_token": True}, "`distillation_token` needs a class token"),
        ({"patch": 4, "size": "tiny", "positions": "none"}, "`positions: none` needs `relative_bias: true`"),
        ({"patch": 4, "size": "tiny", "drop_path": 1}, "less than 1"),
    ],
)
def test_wrong_configurations_are_refused(content, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(BACKBONES["vit"][0], content, "mix.yaml")


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(InputError, match="patch: 5 does not divide the image size 32; patches that do: 2, 4, 8, 16"):
        build_backbone("vit", VitConfig(size="tiny", patch=5), 32, seed=0)


def test_positions_can_be_measured_in_the_units_of_another_grid() -> None:
    """The table of a run at twice the resolution is that which the network of the first one has there."""
    first = build_backbone("vit", VitConfig(width=32, depth=1, heads=2, patch=4), 32, seed=0)
    second = build_backbone("vit", VitConfig(width=32, depth=1, heads=2, patch=4, position_grid=8), 64, seed=0)
    torch.testing.assert_close(second.pos_embed[0], first._positions(16), rtol=0, atol=0)
    torch.testing.assert_close(second._positions(8), first.pos_embed[0], rtol=0, atol=0)
    assert (first.extent, second.extent) == (8, 8)
