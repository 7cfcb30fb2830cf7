"""Weights by what a user calls them: timm's folders and names, and those of a hub, without a network."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa_shards.errors import InputError
from hjepa_train.jobs.initial_weights import build_with
from hjepa_train.jobs.weight_sources import find
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
        net = timm.create_model("vit_base_patch16_224", **ARGUMENTS).eval()
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
    backbone, _, _ = build_with(InitConfig(weights=weights), side)
    with torch.no_grad():
        return backbone.eval().encode(backbone.embed(images(side))).pooled_BD


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
    import huggingface_hub

    kept = tmp_path / "models--org--net"
    folder_of(theirs, kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
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
        ("/nowhere.pth", "No such file"),
        ("/nowhere.npz", r"a file of weights \(.safetensors, .pt, .*\) or a folder expected, .npz found"),
        ("/etc", "a run's or a checkpoint's folder, or one with model.safetensors"),
    ],
)
def test_what_is_not_there_is_one_line(weights: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match=message) as refused:
        find(InitConfig(weights=weights))
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.random.get_rng_state(), before), "timm draws nothing of ours"


def test_a_model_of_timms_by_its_name(theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights in a file here in place of its server's; all else is timm's own way."""
    import timm

    file = folder_of(theirs, tmp_path / "net") / "model.safetensors"
    local = functools.partial(
        timm.create_model,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 0, "mean": (0.1, 0.2, 0.3)},
        **ARGUMENTS,
    )
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, num_classes: local(name, pretrained=pretrained))
    with torch.no_grad():
        torch.testing.assert_close(features("timm:vit_base_patch16_224"), theirs(images()), rtol=1e-5, atol=1e-5)
    found = find(InitConfig(weights="timm:vit_base_patch16_224"))
    assert list(found.about["mean"]) == [0.1, 0.2, 0.3]
    assert found.source == "timm:vit_base_patch16_224"
