import pytest
import torch

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.vit import VitConfig
from tests.checks import assert_backbone_contract

NANO = VitConfig(width=32, depth=3, heads=2, patch=4)


def test_vit_keeps_the_backbone_contract() -> None:
    assert_backbone_contract(lambda: build_backbone("vit", NANO, 24, seed=5), 24)


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
    ],
)
def test_wrong_configurations_are_refused(content, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(BACKBONES["vit"][0], content, "mix.yaml")


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(InputError, match="patch: 5 does not divide the image size 32; patches that do: 2, 4, 8, 16"):
        build_backbone("vit", VitConfig(size="tiny", patch=5), 32, seed=0)
