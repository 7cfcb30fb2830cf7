"""Weights of published layouts give the features that plain code of that layout gives."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Features
from hjepa_train.backbones.registry import build_backbone
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
    Ijepa,
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
        for net, init in ((target, {}), (online, {"key": "encoder"})):
            features, found, fitted = begun(path, {}, **init)
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
