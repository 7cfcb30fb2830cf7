"""A run's encoder for other programs: plain weights, a folder that timm loads, or a graph for onnxruntime.

What comes out takes images as the run saw them: RGB, [0, 1], minus `mean`, over `std`, both written beside the weights.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.data.labelled_images import EvaluationConfig
from hjepa_train.jobs.initial_weights import build_with, image_size_of
from hjepa_train.jobs.saved_objective import load_objective
from hjepa_train.jobs.weight_sources import IMAGENET, find
from hjepa_train.weights.init_config import InitConfig

Form = Literal["safetensors", "torch", "timm", "onnx"]
FORMS: tuple[Form, ...] = get_args(Form)
_UNFINISHED = ".hjepa-export-"
"""How the folder is called in which an export is written; it is locked meanwhile."""
_TOLERANCE = 1e-4
"""Largest difference of onnxruntime's features from PyTorch's, relative to their size."""


def export(
    folder: Path, to: Form, out: Path | None = None, *, encoder: str | None = None, which: str = "latest"
) -> Path:
    """Write an encoder of a run's checkpoint. Returns where: `out`, by default <run>/export/<encoder>-<to>.

    which: `latest`, `best` (by training.keep_best) or a checkpoint's folder.
    encoder: by default the last of the run's: the momentum target where there is one.
    InputError for an encoder that the run does not have, and where the form cannot hold its backbone.
    """
    saved = load_objective(folder, which)
    config, path = saved.config, saved.checkpoint
    encoder, network = saved.encoder(encoder, "--encoder")
    if out is None and (folder / "export").is_symlink():
        raise InputError(
            f"{folder / 'export'}: a folder of this run expected, a link found; choose a location with --out"
        )
    facts = {
        "image_size": config.data.image_size,
        "mean": list(config.data.pixel_mean),
        "std": list(config.data.pixel_std),
        "run": config.run.name,
        "checkpoint": path.name,
        "encoder": encoder,
        "backbone": config.backbone,
    }
    out = out or folder / "export" / f"{encoder}-{to}"
    return _written(network, to, out, facts, config.evaluation.crop_share)


def export_weights(weights: InitConfig, to: Form, out: Path, *, image_size: int | None = None) -> Path:
    """Write weights from elsewhere, which no run here has trained. Returns `out`.

    image_size: side in pixels, by default what the source says, or its table of positions.
    InputError where they are not there, say neither size nor backbone, or the form cannot hold it.
    """
    found = find(weights)
    size = image_size or image_size_of(found)
    built = build_with(found, size, weights.leave)
    mean, std = (list(found.about.get(name) or usual) for name, usual in zip(("mean", "std"), IMAGENET, strict=True))
    facts = {
        "image_size": size,
        "mean": mean,
        "std": std,
        "run": Path(weights.weights.rstrip("/")).name,
        "source": found.source,
        "digest": built.fitted.digest,
        "backbone": built.config,
    }
    return _written(built.backbone, to, out, facts, EvaluationConfig().crop_share)


def _written(encoder: Backbone, to: Form, out: Path, facts: dict[str, Any], crop_share: float) -> Path:
    """All of an export, or nothing.

    facts: what is written beside the weights.  crop_share: of the images that `eval` sees.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: is there already; remove it, or choose another location with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(out.parent)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=out.parent) as part, _held(Path(part)):
            whole = Path(part) / "whole"
            whole.mkdir()
            _WRITERS[to](whole, encoder.eval(), facts, crop_share)
            whole.rename(out)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{out}: cannot be written: {reason}; make room, or choose another location with --out"
        ) from error
    return out


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """A folder locked while this process is in the block; false where another process has it locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _clear_leftovers(folder: Path) -> None:
    """What exports that were killed have left in a folder."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        if left.is_dir() and not left.is_symlink():
            with _held(left) as is_ours:
                if is_ours:
                    shutil.rmtree(left, ignore_errors=True)


def _safetensors(out: Path, encoder: Backbone, facts: dict[str, Any], crop_share: float) -> None:
    del crop_share
    about = {key: json.dumps(value) for key, value in facts.items()}
    save_file(_weights(encoder), out / "model.safetensors", about)
    _order_metadata(out / "model.safetensors")


def _order_metadata(path: Path) -> None:
    """Metadata by name: safetensors writes it in an order of chance. Tensors are in order already, by type and name."""
    with path.open("r+b") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(ordered) <= num_bytes, "the same keys and values in another order"
        file.seek(8)
        file.write(ordered.ljust(num_bytes))


def _torch(out: Path, encoder: Backbone, facts: dict[str, Any], crop_share: float) -> None:
    del crop_share
    checkpoint_files.write_torch(out / "model.pt", {"weights": _weights(encoder), **facts})


def _timm(out: Path, encoder: Backbone, facts: dict[str, Any], crop_share: float) -> None:
    """As timm's own hub has it: `timm.create_model("local-dir:OUT", pretrained=True)`.

    With `num_classes` timm draws a head, with `in_chans=1` it adds up the weights of the colours.
    """
    try:
        form = encoder.as_timm()
    except InputError as error:
        raise InputError(f"--to timm: {error}; say --to safetensors") from error
    size = facts["image_size"]
    about = {
        "input_size": [3, size, size],
        "mean": facts["mean"],
        "std": facts["std"],
        "crop_pct": crop_share,
        "crop_mode": "center",
        "interpolation": "bilinear",  # of timm's, the nearest to what the loader does
        "num_classes": 0,
        "first_conv": form.first_conv,
        "classifier": form.classifier,
        "tag": facts["run"],
    }
    content = {
        "architecture": form.architecture,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": form.arguments.get("global_pool", "avg"),
        "model_args": dict(form.arguments),
        "pretrained_cfg": about,
    }
    (out / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_file(
        _weights(encoder) | {name: one.cpu().clone() for name, one in form.more.items()}, out / "model.safetensors"
    )


class _Pooled(nn.Module):
    """Images to their one vector."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.encoder.encode(self.encoder.embed(images_BCHW)).pooled_BD


def _onnx(out: Path, encoder: Backbone, facts: dict[str, Any], crop_share: float) -> None:
    """`features` [B, D] of `images` [B, 3, R, R] for any B, compared with PyTorch's by onnxruntime."""
    del crop_share
    missing = [name for name in ("onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--to onnx: {', '.join(missing)}: not installed; run `pip install 'hjepa[onnx]'`")
    import numpy as np
    import onnxruntime

    size = facts["image_size"]
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    pooled = _Pooled(encoder).eval()
    program = torch.onnx.export(
        pooled,
        (images,),
        dynamo=True,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    program.save(out / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        [found] = session.run(None, {"images": batch.numpy()})
        with torch.no_grad():
            expected = pooled(batch).numpy()
        apart = float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())
        if not apart <= _TOLERANCE:
            raise InputError(
                f"--to onnx: onnxruntime's features differ from PyTorch's by {apart:.1e}, {_TOLERANCE} allowed"
            )


def _weights(encoder: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}


_WRITERS: dict[Form, Callable[[Path, Backbone, dict[str, Any], float], None]] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "timm": _timm,
    "onnx": _onnx,
}
