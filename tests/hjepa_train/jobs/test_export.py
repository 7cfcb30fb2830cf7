"""What is exported gives the run's features in the programs that it is for."""

import fcntl
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from hjepa_shards.errors import InputError
from hjepa_train import export, load_run_config, train
from hjepa_train.backbones.vit import ViT
from hjepa_train.checkpoints.checkpoint_files import latest, load
from hjepa_train.cli import main
from hjepa_train.training.config import build_parts
from tests.conftest import Command, in_this_process
from tests.hjepa_train.checkpoints.test_untrusted_checkpoints import sealed
from tests.hjepa_train.tiny import tiny_run


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load_run_config(tiny_run(shards, tmp_path_factory.mktemp("run"))), stop_after=5)


def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def features(run: Path, encoder: str) -> torch.Tensor:
    """Of `images`, by the checkpoint itself."""
    saved = latest(run / "checkpoints")
    assert saved is not None
    _, objective = build_parts(load_run_config(run / "config.yaml"), 36, "here")
    objective.load_state_dict(load(saved).model)
    ours = objective.encoders()[encoder].eval()
    with torch.no_grad():
        return ours.encode(ours.embed(images())).pooled_BD


@pytest.mark.parametrize("encoder", ["target", "online"])
def test_timm_loads_the_folder_by_its_name_alone(run: Path, tmp_path: Path, encoder: str) -> None:
    import timm

    out = export(run, "timm", tmp_path / "vit", encoder=encoder)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images()), features(run, encoder), rtol=1e-5, atol=1e-5)
    config = timm.data.resolve_model_data_config(theirs)
    assert list(config["input_size"]) == [3, 16, 16]
    assert list(config["mean"]) == list(load_run_config(run / "config.yaml").data.pixel_mean)


BACKBONES = {
    "deit": {"width": 24, "depth": 2, "heads": 2, "patch": 4},
    "convnext": {"depths": [1, 1, 1, 1], "widths": [8, 8, 16, 16], "patch": 1, "layer_scale": None},
    "swin": {"width": 16, "depths": [1, 2], "heads": [2, 2], "patch": 2, "window": 4},
    "tinyvit": {"depths": [1, 2], "widths": [8, 16], "heads": [1, 2], "windows": [2, 2]},
    "timm": {"name": "test_efficientnet"},
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_goes_to_timm_onnx_and_plain_weights(shards: Path, tmp_path: Path, name: str) -> None:
    import onnxruntime
    import timm

    config = tiny_run(shards, tmp_path, data__augmentation={"views": 2})
    content = yaml.safe_load(config.read_text())
    content |= {"backbone": {name: BACKBONES[name]}, "objective": {"simclr": {}}}
    config.write_text(yaml.safe_dump(content))
    run = train(load_run_config(config), stop_after=2)
    expected = features(run, "encoder")
    theirs = timm.create_model(f"local-dir:{export(run, 'timm')}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images()), expected, rtol=1e-5, atol=1e-5)
    classifier = timm.create_model(f"local-dir:{run / 'export' / 'encoder-timm'}", pretrained=True, num_classes=10)
    assert classifier(images()).shape == (5, 10)
    session = onnxruntime.InferenceSession(export(run, "onnx") / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(["features"], {"images": images().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    plain = load_file(export(run, "safetensors") / "model.safetensors")
    backbone, _ = build_parts(load_run_config(run / "config.yaml"), 36, "here")
    backbone.load_state_dict(plain, strict=True)
    with torch.no_grad():
        assert torch.equal(backbone.eval().encode(backbone.embed(images())).pooled_BD, expected)


def test_timm_takes_other_classes_and_channels_and_knows_the_crop(shards: Path, tmp_path: Path) -> None:
    import timm

    evaluation = {"source": "digits", "bank": 150, "test": 50, "crop_share": 0.625}
    run = train(load_run_config(tiny_run(shards, tmp_path, evaluation=evaluation)), stop_after=1)
    out = export(run, "timm")
    classifier = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=10).eval()
    gray = timm.create_model(f"local-dir:{out}", pretrained=True, in_chans=1).eval()
    with torch.no_grad():
        expected = features(run, "target")
        pooled = classifier.forward_head(classifier.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
        assert classifier(images()).shape == (5, 10)
        one = images()[:, :1]
        three = timm.create_model(f"local-dir:{out}", pretrained=True).eval()(one.expand(-1, 3, -1, -1))
        torch.testing.assert_close(gray(one), three, rtol=1e-4, atol=1e-4)
    config = timm.data.resolve_model_data_config(classifier)
    assert (config["crop_pct"], config["crop_mode"]) == (0.625, "center")


def test_an_export_has_the_same_bytes_each_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(form: Literal["safetensors", "timm"], name: str) -> bytes:
        return (export(run, form, tmp_path / f"{form}-{name}") / "model.safetensors").read_bytes()

    first = {form: exported(form, "first") for form in ("safetensors", "timm")}
    given = ViT.state_dict

    def backwards(self: ViT, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return dict(reversed(given(self, *args, **kwargs).items()))

    monkeypatch.setattr(ViT, "state_dict", backwards)
    assert {form: exported(form, "again") for form in ("safetensors", "timm")} == first
    header = json.loads(first["safetensors"][8 : 8 + int.from_bytes(first["safetensors"][:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"]), "not an order that this process drew"


def test_onnxruntime_gives_the_same_features_for_any_batch(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    out = export(run, "onnx", tmp_path / "graph")
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(["features"], {"images": images().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), features(run, "target"), rtol=1e-4, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["image_size"]) == 16


def test_plain_weights_are_those_of_the_checkpoint_with_what_they_need_to_be_used(run: Path, tmp_path: Path) -> None:
    plain, pickled = export(run, "safetensors", tmp_path / "a"), export(run, "torch", tmp_path / "b")
    ours = load_file(plain / "model.safetensors")
    theirs = torch.load(pickled / "model.pt", weights_only=True)
    assert theirs["mean"] == list(load_run_config(run / "config.yaml").data.pixel_mean)
    saved = latest(run / "checkpoints")
    assert saved is not None
    target = {name[7:]: value for name, value in load(saved).model.items() if name.startswith("target.")}
    for found in (ours, theirs["weights"]):
        torch.testing.assert_close(found, target, rtol=0, atol=0)
    with safe_open(plain / "model.safetensors", "pt") as file:
        about = file.metadata()
    backbone = json.loads(about["backbone"])
    assert list(backbone) == ["vit"]
    assert backbone["vit"].items() >= {"width": 24, "depth": 2, "heads": 2, "patch": 2}.items()
    assert json.loads(about["checkpoint"]) == "step-00000005"


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command: Command = in_this_process("hjepa-train", main, monkeypatch, capfd)
    code, _, said = command("export", run, "--to", "tensorflow")
    assert code == 2
    assert "'safetensors', 'torch', 'timm', 'onnx'" in " ".join(said.replace("│", "").split())
    with pytest.raises(InputError, match="one of online, target expected"):
        export(run, "torch", encoder="predictor")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(InputError, match="no checkpoint yet"):
        export(begun, "torch")
    assert not (run / "export").exists()
    code, out, _ = command("export", run, "--to", "torch")
    assert code == 0
    assert "target-torch" in out.replace("\n", "")
    with pytest.raises(InputError, match="is there already"):
        export(run, "torch")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="inside: cannot be written: "):
        export(run, "torch", tmp_path / "file" / "inside")


class Call:
    """Pickled, it calls a function when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def unpickled(checkpoint: Path, mark: Path) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Call(mark)))
    sealed(checkpoint)


def optimizer_that_calls(checkpoint: Path, mark: Path) -> None:
    torch.save({"state": Call(mark)}, checkpoint / "optimizer.pt")
    sealed(checkpoint)


def file_outside(checkpoint: Path, mark: Path) -> None:
    files = json.loads((checkpoint / "files.json").read_bytes())
    (checkpoint / "files.json").write_text(json.dumps({**files, str(mark.parent / "mine"): {}}))


def endless(checkpoint: Path, mark: Path) -> None:
    (checkpoint / "state.json").unlink()
    (checkpoint / "state.json").symlink_to("/dev/zero")


def export_elsewhere(checkpoint: Path, mark: Path) -> None:
    folder = checkpoint.parent.parent / "export"
    shutil.rmtree(folder, ignore_errors=True)  # of another test
    folder.symlink_to(mark.parent)


ATTACKS = (unpickled, optimizer_that_calls, file_outside, endless, export_elsewhere)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_third_partys_run_runs_nothing_and_touches_nothing_outside(
    run: Path,
    tmp_path: Path,
    attack: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    theirs = Path(shutil.copytree(run, tmp_path / "theirs"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("all my work")
    checkpoint = latest(theirs / "checkpoints")
    assert checkpoint is not None
    attack(checkpoint, outside / "mark")
    program = in_this_process("hjepa-train", main, monkeypatch, capfd)
    for arguments in (("export", theirs, "--to", "torch"), ("eval", theirs, "--probe", "knn")):
        if attack is not export_elsewhere or arguments[0] == "export":
            code, _, err = program(*arguments)
            assert (code, len(err.splitlines())) == (2, 1), err
    assert [path.name for path in outside.iterdir()] == ["mine"]
    assert (outside / "mine").read_text() == "all my work"


def test_what_a_killed_export_left_is_cleared_by_the_next(run: Path, tmp_path: Path) -> None:
    left, busy = tmp_path / ".hjepa-export-left", tmp_path / ".hjepa-export-busy"
    for folder in (left, busy):
        (folder / "whole").mkdir(parents=True)
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    export(run, "torch", tmp_path / "out")
    os.close(descriptor)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hjepa-export-busy", "out"]
