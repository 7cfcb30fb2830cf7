"""Weights by what a user calls them: timm's folders and names, and those of a hub, without a network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.jobs.initial_weights import build_with
from hjepa_train.jobs.weight_sources import find
from hjepa_train.weights.fitting import fit, put
from hjepa_train.weights.init_config import InitConfig

ARGUMENTS: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0},
    **{"class_token": False, "global_pool": "avg", "fc_norm": False},
}


def images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def theirs() -> Any:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: Any = timm.create_model("vit_base_patch16_224", **ARGUMENTS).eval()
    from hjepa_train.modules.layers import sincos_positions

    with torch.no_grad():  # one of ours: fixed positions
        net.pos_embed.copy_(sincos_positions(4, 24, extent=4)[None])
    return net


def folder_of(net: Any, folder: Path, **about: Any) -> Path:
    """As timm's hub has it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "architecture": "vit_base_patch16_224",
        "model_args": ARGUMENTS,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 32, 32], **about},
    }
    (folder / "config.json").write_text(json.dumps(content))
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


def features(weights: str, side: int = 32) -> Tensor:
    backbone = build_with(find(InitConfig(weights=weights)), side).backbone.eval()
    with torch.no_grad():
        return backbone.encode(backbone.embed(images(side))).pooled_BD


def test_a_folder_of_timms_gives_its_features_and_says_what_its_images_were(theirs: Any, tmp_path: Path) -> None:
    folder = folder_of(theirs, tmp_path / "net")
    for weights in (f"local-dir:{folder}", str(folder), str(folder / "model.safetensors")):
        with torch.no_grad():
            if weights.endswith("model.safetensors"):  # heads are not in shapes
                with pytest.raises(InputError, match="heads"):
                    features(weights)
                continue
            torch.testing.assert_close(features(weights), theirs(images()), rtol=1e-5, atol=1e-5)
    found = find(InitConfig(weights=f"local-dir:{folder}"))
    assert (found.about["mean"], found.about["image_size"]) == ([0.1, 0.2, 0.3], 32)
    assert found.source == f"local-dir:{folder}"


def test_a_repository_of_a_hub_is_read_from_its_cache(
    theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    kept = tmp_path / "models--org--net"
    folder_of(theirs, kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with torch.no_grad():
        torch.testing.assert_close(features("hf-hub:org/net"), theirs(images()), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"hf-hub:org/other: model\.safetensors or pytorch_model\.bin expected there"):
        find(InitConfig(weights="hf-hub:org/other"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("timm:no_such_net", "a model with published weights expected: Unknown model"),
        ("timm:vit_wee_patch16_reg1_gap_256", "a model with published weights expected"),
        ("local-dir:/nowhere", "a folder with model.safetensors or"),
        ("/nowhere.pth", "nothing found there; train that run first, or correct init.weights"),
        (__file__, r"a file of weights \(.safetensors, .pt, .*\) or a folder expected, .py found"),
        ("/etc", "a run's or a checkpoint's folder, or one with model.safetensors"),
    ],
)
def test_what_is_not_there_is_one_line(weights: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match=message) as refused:
        find(InitConfig(weights=weights))
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.random.get_rng_state(), before), "timm draws nothing of ours"


def test_a_model_of_timms_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights in a file here in place of its server's; all else is timm's own way."""
    import timm

    name, create = "vit_tiny_patch16_224", timm.create_model
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net: Any = create(name).eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth"), "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **arguments: create(
            name, pretrained=pretrained, **({"pretrained_cfg_overlay": overlay} if pretrained else {}), **arguments
        ),
    )
    found = find(InitConfig(weights=f"timm:{name}"))
    assert list(found.about["mean"]) == [0.1, 0.2, 0.3]
    assert found.source == f"timm:{name}"
    ours = VitConfig.model_validate(
        {"size": "tiny", "patch": 16, "class_tokens": 1, "positions": "learnt", "pool": "class"}
    )
    backbone = build_backbone("vit", ours, 224, seed=0).eval()
    put(backbone, fit(backbone, found.weights, leave=(), where="here").tensors)
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(images(224)), pre_logits=True)
        torch.testing.assert_close(features(f"timm:{name}", 224), expected, rtol=1e-5, atol=1e-5)
        found_here = backbone.encode(backbone.embed(images(224))).pooled_BD
        torch.testing.assert_close(found_here, expected, rtol=1e-5, atol=1e-5)


def test_a_folder_of_a_network_that_only_timm_has(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(1)
        net: Any = timm.create_model("resnet10t", num_classes=7).eval()
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": {"num_classes": 7}}))
    save_file(net.state_dict(), folder / "model.safetensors")
    built = build_with(find(InitConfig(weights=f"local-dir:{folder}")), 64)
    assert built.fitted.notes == ("no part of the backbone, left out: fc.bias, fc.weight",)
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(images(64)), pre_logits=True)
        torch.testing.assert_close(features(f"local-dir:{folder}", 64), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "torch", "timm"])
def test_weights_without_a_run_are_exported(tmp_path: Path, form: Any) -> None:
    """DINO's file, as its authors publish it: the size of images, the backbone and heads follow from it."""
    from hjepa_train.jobs.export import export_weights

    generator = torch.Generator().manual_seed(0)
    tensors = tiny_dino(generator)
    torch.save(
        {"teacher": {f"backbone.{name}": value for name, value in tensors.items()} | {"head.x": torch.ones(2)}},
        tmp_path / "dino.pth",
    )
    source = InitConfig(weights=str(tmp_path / "dino.pth"))
    out = export_weights(source, form, tmp_path / form)
    expected = build_with(find(source), 32).backbone.eval()
    with torch.no_grad():
        wanted = expected.encode(expected.embed(images())).pooled_BD
        torch.testing.assert_close(features(str(out)), wanted, rtol=1e-5, atol=1e-5)
        if form == "timm":
            import timm

            theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
            torch.testing.assert_close(theirs(images()), wanted, rtol=1e-5, atol=1e-5)
    found = find(InitConfig(weights=str(out)))
    assert (found.about["image_size"], found.about["mean"]) == (32, [0.485, 0.456, 0.406])
    with pytest.raises(InputError, match="is there already"):
        export_weights(source, form, out)


def tiny_dino(generator: torch.Generator) -> dict[str, Tensor]:
    """A vision transformer 64 wide, of one block, for images of 32 pixels, in DINO's names."""
    shapes = {
        **{"cls_token": (1, 1, 64), "pos_embed": (1, 17, 64), "norm.weight": (64,), "norm.bias": (64,)},
        **{"patch_embed.proj.weight": (64, 3, 8, 8), "patch_embed.proj.bias": (64,)},
        **{f"blocks.0.norm{number}.{kind}": (64,) for number in (1, 2) for kind in ("weight", "bias")},
        **{"blocks.0.attn.qkv.weight": (192, 64), "blocks.0.attn.qkv.bias": (192,)},
        **{"blocks.0.attn.proj.weight": (64, 64), "blocks.0.attn.proj.bias": (64,)},
        **{"blocks.0.mlp.fc1.weight": (256, 64), "blocks.0.mlp.fc1.bias": (256,)},
        **{"blocks.0.mlp.fc2.weight": (64, 256), "blocks.0.mlp.fc2.bias": (64,)},
    }
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_what_a_file_says_of_itself_takes_no_memory_and_is_checked(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    tensors = tiny_dino(torch.Generator().manual_seed(0))
    huge = {"vit": {"width": 65536, "depth": 256, "heads": 64, "patch": 8}}
    for backbone, message in (
        (huge, "of another shape|missing"),
        ({"vit": {"width": "a", "depth": 1, "heads": 1, "patch": 8}}, r"backbone\.vit: width"),
        ({"no_such": {}}, r"one of vit, .* expected, 'no_such' found"),
        ({"timm": {"name": "resnet10t", "arguments": {"checkpoint_path": "/x"}}}, "arguments of the network's shape"),
    ):
        save_file(tensors, path, {"backbone": json.dumps(backbone), "mean": "7", "image_size": "[]", "arguments": "3"})
        found = find(InitConfig(weights=str(path)))
        assert "mean" not in found.about
        with pytest.raises(InputError, match=message):
            build_with(found, 32)
    folder = tmp_path / "net"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for text in (
        "[1]",
        '{"pretrained_cfg": 3, "model_args": [], "architecture": 5}',
        '{"pretrained_cfg": {"mean": [1]}}',
    ):
        (folder / "config.json").write_text(text)
        assert "mean" not in find(InitConfig(weights=f"local-dir:{folder}")).about
    for text in ("{", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match="timm's description of a model expected"):
            find(InitConfig(weights=f"local-dir:{folder}"))
