"""What frozen features are worth: every encoder of a run beside what it must beat.

Features are average-pooled; bank and test are the first samples in manifest order, which is a keyed shuffle, so they
are random subsets. Baselines stand in the same table: chance, raw pixels, 30 principal components, and the same
encoder untrained, with the very weights that the run began with.
"""

import copy
import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_shards import (
    SOURCES,
    DataConfig,
    InputError,
    load_mixture,
    manifest_at,
    parse,
    place_of,
    read_split,
    splits_at,
    write_atomically,
)
from hjepa_train import checkpoint
from hjepa_train.augment import normalise
from hjepa_train.backbones import Backbone
from hjepa_train.probe import chance, pca, probe
from hjepa_train.report import write_report
from hjepa_train.run import CONFIG_FILE, EvaluationConfig, RunConfig, build_parts, choose_device, load_run_config
from hjepa_train.saving import restore

_BATCH = 256
_PIXELS_SIDE = 32
"""Raw pixels of larger images are averaged down to this side: 150,528 dimensions would drown any probe."""


def evaluate(
    folder: Path,
    *,
    source: str | None = None,
    known_rows: Sequence[dict[str, Any]] = (),
    say: Callable[[str], None] = lambda what: None,
    **changes: Any,
) -> dict[str, Any]:
    """Probe a run's latest checkpoint on a labelled source; also written to evaluation.json and report.md.

    known_rows: rows that need no probing, such as the pixels' from another run's evaluation on the same images.
    say: hears what is being done, some minutes in all.
    changes: fields of EvaluationConfig to use in place of the run's. Returns one evaluation as in report.py.
    """
    config = load_run_config(folder / CONFIG_FILE)
    settings = parse(
        EvaluationConfig,
        config.evaluation.model_dump() | {key: value for key, value in changes.items() if value is not None},
        "evaluation",
    )
    name = source or settings.source or config.data.sources[0].name
    path = checkpoint.latest(folder / "checkpoints")
    if path is None:
        raise InputError(f"{folder}: no checkpoint yet; let the run reach training.save_every_steps")
    device = choose_device(config.training.device)
    encoders = _encoders(config, path, device)
    data = config.data
    split = _test_split(data, name, settings.split)
    say(f"reading {name}")
    bank, bank_labels = _read(data, name, "train", settings.bank, settings.crop_share, device)
    test, test_labels = _read(data, name, split, settings.test, settings.crop_share, device)
    say(f"{len(bank):,} images of {name} train to learn from, {len(test):,} of {name} {split} to be tested on")
    known = {row["features"] for row in known_rows}
    features: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "raw pixels": lambda: (_pixels(bank), _pixels(test)),
        "PCA-30": lambda: pca(_pixels(bank), _pixels(test)),
        **{
            name: lambda encoder=encoder: (_pooled(encoder, bank, data), _pooled(encoder, test, data))
            for name, encoder in encoders.items()
        },
    }

    def row(features_name: str, make: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        say(f"probing {features_name}")
        of_bank, of_test = make()
        return asdict(probe(features_name, of_bank, bank_labels, of_test, test_labels))

    result = {
        "source": name,
        "split": split,
        "checkpoint": path.name,
        "bank": len(bank),
        "test": len(test),
        "chance": chance(bank_labels, test_labels),
        "rows": [
            *known_rows,
            *(row(key, make) for key, make in features.items() if key not in known),
        ],
    }
    _remember(folder / "evaluation.json", result)
    write_report(folder)
    return result


def _encoders(config: RunConfig, path: Path, device: torch.device) -> dict[str, Backbone]:
    """The encoders of a checkpoint, and the one the run began with."""
    mixture = load_mixture(config.data, config.run.name)
    num_steps = mixture.make_plan(config.run.seed).num_steps(config.training.epochs, config.training.global_batch)
    backbone, objective = build_parts(config, num_steps, config.run.name)
    untrained = copy.deepcopy(backbone)
    restore(checkpoint.load(path), objective)
    found = {"untrained": untrained, **objective.encoders()}
    return {name: encoder.to(device).eval() for name, encoder in found.items()}


def _test_split(data: DataConfig, source: str, asked: str | None) -> str:
    """The split to test on, which stands beside a train split for the bank."""
    where = f"{data.root.rstrip('/')}/{source}"
    built = splits_at(data.root, source, [asked] if asked else [])
    if not built:
        others = sorted({*(folder.name for folder in Path(data.root).glob("*")), *(one.name for one in data.sources)})
        others = [other for other in others if splits_at(data.root, other)]
        nearest = difflib.get_close_matches(source, others, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"built there: {', '.join(others) or 'nothing'}"
        if source in SOURCES:
            advice = f"build it with {_build(source, source)}"
        raise InputError(f"{where}: a built source expected, none found; {advice}")
    tests = [asked] if asked else [split for split in ("test", "val") if split in built]
    if not tests or tests[0] not in built or tests[0] == "train" or "train" not in built:
        raw_source = manifest_at(place_of(data.root, source, built[0])).raw_source
        raise InputError(
            f"{where}: a split train to fit the probe on and another, {asked or 'test or val'}, to test it on "
            f"expected, {', '.join(built)} found; build it with {_build(source, raw_source)}, or name another source "
            "with --source or split with --split"
        )
    return tests[0]


def _build(source: str, raw_source: str) -> str:
    """The command that builds all usual splits of a source."""
    raw = " --raw DIR" if raw_source not in SOURCES or SOURCES[raw_source].layout else ""
    name = f" --name {source}" if source != raw_source else ""
    inner = " (DIR: train/<class>/ and test/<class>/)" if raw_source == "folder" else ""
    return f"`hjepa-shards build {raw_source}{raw}{name}`{inner}"


def _read(
    data: DataConfig, source: str, split: str, limit: int, crop_share: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images, uint8 [n, 3, R, R], and labels [n]."""
    place = place_of(data.root, source, split)
    batches = read_split(
        place, image_size=data.image_size, batch=_BATCH, crop_share=crop_share, limit=limit, cache=data.cache
    )
    pairs = [
        (torch.from_numpy(batch.images[batch.valid]), torch.from_numpy(batch.labels[batch.valid])) for batch in batches
    ]
    images = torch.cat([images for images, _ in pairs]).permute(0, 3, 1, 2)
    labels = torch.cat([labels for _, labels in pairs])
    if (labels < 0).all():
        raise InputError(
            f"{place}: labels to probe for expected, none found; name a labelled source with --source: cifar10, say, "
            "or a folder that was built from train/<class>/ and test/<class>/"
        )
    return images.to(device), labels.to(device)


@torch.no_grad()
def _pooled(encoder: Backbone, images: Tensor, data: DataConfig) -> Tensor:
    parts = (normalise(part.float(), mean=data.pixel_mean, std=data.pixel_std) for part in images.split(_BATCH))
    return torch.cat([encoder.encode(encoder.embed(part)).pooled_BD for part in parts])


def _pixels(images: Tensor) -> Tensor:
    """As they are, neither centred nor scaled: what a probe makes of that is part of the baseline."""
    side = min(_PIXELS_SIDE, images.shape[-1])
    return F.adaptive_avg_pool2d(images.float(), side).flatten(1)


def _remember(path: Path, result: dict[str, Any]) -> None:
    """Put a result into evaluation.json, in place of an earlier one of the same source and split."""
    results = json.loads(path.read_bytes()) if path.exists() else []
    same = (result["source"], result["split"])
    results = [other for other in results if (other["source"], other["split"]) != same] + [result]
    write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
