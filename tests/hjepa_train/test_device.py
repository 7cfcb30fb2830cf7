"""A step on a GPU that is not here: all of it is there, and the host never waits for it between log points.

Fake tensors have a device, a shape and a type, and no numbers: augmentation, forward passes, AdamW, the target's step
and what log points look at run on them as on a GPU. Autograd's engine wants a real one: gradients are made up here, and
nothing of the backward pass is seen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hjepa_shards import AugmentationConfig, DataConfig, SourceConfig
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.data import augment, micro_batches
from hjepa_train.data.micro_batches import to_micro_batches
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.objectives.contrast.simclr import Simclr, SimclrConfig
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.masked.mae import Mae, MaeConfig
from hjepa_train.reports.run_log import SourceLosses
from hjepa_train.training.optimizer import OptimConfig, build_optimizer, clip, set_rates, update
from tests.hjepa_train.data.test_micro_batches import loaded

GPU = torch.device("cuda", 0)
SMALL = {"width": 16, "depth": 1, "heads": 2}
FAMILIES: dict[str, tuple[type[Any], Any]] = {
    "vicreg": (HJepa, HJepaConfig.model_validate({"strides": (1, 2, 4), "momentum": 0.7, "predictor": SMALL})),
    "sigreg, by depth": (
        HJepa,
        HJepaConfig.model_validate({"levels": "depth", "momentum": 0.7, "predictor": SMALL, "anticollapse": "sigreg"}),
    ),
    "mae": (Mae, MaeConfig.model_validate({"decoder": SMALL})),
    "simclr": (Simclr, SimclrConfig()),
}
SIDE, ROWS = 32, 8

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this PyTorch was built without CUDA")


class Traffic(TorchDispatchMode):
    """Writes down whatever goes from one device to another, and what no GPU of Apple's can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.seen.append("a number for the host")
            return True
        result = func(*args, **(kwargs or {}))
        came, went = ({t.device.type for t in tree_leaves(of) if isinstance(t, Tensor)} for of in (args, result))
        if came and went and not went <= came:
            self.seen.append(f"{func}: from {came} to {went}")
        if any(isinstance(t, Tensor) and t.is_cuda and t.dtype == torch.float64 for t in tree_leaves(result)):
            self.seen.append(f"{func}: float64")
        return result


@contextmanager
def on_fake_gpu(module: nn.Module) -> Iterator[Traffic]:
    """`module` laid there, and all that follows; in bfloat16 where autocast would have it."""
    augment._constant.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), Traffic() as traffic:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        lay_on_gpu(module)
        yield traffic
        torch.set_autocast_enabled("cuda", False)
    augment._constant.cache_clear()  # those of this test have no numbers


def built(family: str) -> Objective:
    kind, config = FAMILIES[family]
    backbone = build_backbone("vit", VitConfig(width=16, depth=3, heads=2, patch=4), SIDE, seed=0)
    return kind(backbone, config, image_size=SIDE, num_steps=20, seed=0)


def lay_on_gpu(module: nn.Module) -> None:
    """As `.to(device)`, which fake tensors cannot do in place."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            moved = torch.empty_like(parameter, device=GPU)
            setattr(part, name, nn.Parameter(moved, requires_grad=parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty_like(buffer, device=GPU))


def prepared(num_views: int, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """As to_micro_batches does it, with everything that can be done to pixels."""
    views = (num_views,) if num_views > 1 else ()
    images = torch.empty(ROWS, *views, SIDE, SIDE, 3, dtype=torch.uint8, device=GPU)
    numbers = torch.empty(3, ROWS, dtype=torch.int64, device=GPU).unbind()
    monkeypatch.setattr(
        micro_batches, "_moved", lambda arrays, device: (images, *numbers)
    )  # the copy itself needs a GPU
    config = DataConfig(
        root="unused",
        strategy="balanced",
        sources=(SourceConfig(name="digits"),),
        image_size=SIDE,
        augmentation=AugmentationConfig(color_jitter=0.4, grayscale=0.2, blur=0.5, views=num_views),
    )
    (batch,) = to_micro_batches(loaded(ROWS), config, micro_batch=ROWS, seed=0, device=GPU)
    return batch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_waits_for_nothing_between_log_points(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = built(family)
    with on_fake_gpu(objective) as traffic:
        optimizer, losses = build_optimizer(objective, OptimConfig()), SourceLosses(2, GPU)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        for step in range(2):
            traffic.seen = []
            batch = prepared(objective.num_views, monkeypatch)
            objective.before_step([batch])
            loss, metrics = objective(batch)
            losses.add(metrics["loss_B"], batch.entry_B)
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            is_finite = norm.isfinite()
            set_rates(optimizer, lr=1e-3, weight_decay=0.05)
            clip(optimizer, norm, 1.0)
            update(optimizer, is_finite)
            objective.after_step(step, is_finite)
    assert traffic.seen == [], "in the second step: constants are copied once"
    everything = (batch.images_BCHW, loss, metrics, objective.state_dict(), optimizer.state_dict()["state"])
    assert {t.device for t in tree_leaves(everything)} == {GPU}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_log_points_look_at_is_on_the_gpu_or_is_fetched(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = built(family)
    with on_fake_gpu(objective) as traffic, torch.no_grad():
        batch = prepared(objective.num_views, monkeypatch)
        sums, kept = objective.survey(batch)
        rows, sketch = objective.observe(batch, kept, sums), objective.sketch(batch)
        fetched = sketch.on_cpu() if sketch else None
    assert {(value.device, len(value)) for value in rows.values()} <= {(GPU, ROWS)}
    assert not any("float64" in seen for seen in traffic.seen)
    if sketch and fetched:
        assert {tokens.device for tokens in sketch.features.values()} == {GPU}
        assert {tokens.device.type for tokens in fetched.features.values()} == {"cpu"}
