"""How good frozen features are: every encoder of a run beside what it must beat.

Features are average-pooled (the attentive probe sees the tokens); which images, data/labelled_images.py says. Baselines
are in the same table: chance, raw pixels, 30 principal components, and the same encoder untrained, with the same
weights that the run's seed draws. Weights from elsewhere have a row each (`beside`), under the same protocol, each with
the pixel statistics that it was trained with. Images are read for each row of the table, and only that row's features
are kept. Each finished part is on disk at once (evaluation/finished_probes.py): an evaluation that was killed continues
where it was, and another probe of the same checkpoint joins the numbers that are there.
"""

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from hjepa_shards import DataConfig, load_mixture, manifest_at, place_of
from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.device import choose_device, devices_here
from hjepa_train.base.mixture_facts import facts_of, read_facts
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.checkpoints.background_saver import restore
from hjepa_train.data.labelled_images import Apart, EvaluationConfig, Labelled, held_out_split, read_bank_and_test
from hjepa_train.data.shared_classes import require_shared_classes
from hjepa_train.evaluation.attentive_probe import attentive_probe
from hjepa_train.evaluation.finished_probes import PROTOCOL, Finished, digest
from hjepa_train.evaluation.frozen_features import features_of, last_stages, pixels, pooled_features, token_reader
from hjepa_train.evaluation.linear_knn_probes import chance, checked, knn_probe, linear_probe, pca
from hjepa_train.evaluation.own_classifier import answers, by_class, confusion, percent_right, truth
from hjepa_train.evaluation.probe_failures import probe_failures
from hjepa_train.evaluation.ridge_probe import ridge_probe
from hjepa_train.evaluation.sgd_probe import sgd_probe
from hjepa_train.jobs.initial_weights import build_with
from hjepa_train.jobs.weight_sources import find
from hjepa_train.objectives.base import Classifies, Objective
from hjepa_train.reports.run_report import read_evaluations, write_report
from hjepa_train.training.config import RunConfig, build_parts
from hjepa_train.training.saved_config import load_saved_config
from hjepa_train.weights.init_config import InitConfig

Probe = Literal["linear", "knn", "ridge", "sgd", "attentive"]
PROBES: tuple[Probe, ...] = get_args(Probe)
USUAL: tuple[Probe, ...] = ("linear", "knn", "ridge")
"""What is cheap."""

Split = tuple[Tensor, Tensor, Tensor, Tensor]
"""Bank [N, D] and its labels [N], test [M, D] and its labels [M]."""

_COLUMNS = (
    *("linear", "knn", "knn_centred", "knn_whitened", "dims", "l2", "ridge", "ridge_l2"),
    *("sgd", "sgd_lr", "sgd_last4", "sgd_last4_lr", "attentive", "attentive_lr"),
)
_MOST_CONFUSED = 200
"""Classes of which all pairs are shown."""


def evaluate(
    folder: Path,
    *,
    source: str | None = None,
    which: str = "latest",
    probes: Sequence[Probe] = USUAL,
    beside: Sequence[InitConfig] = (),
    known_rows: Sequence[dict[str, Any]] = (),
    say: Callable[[str], None] = lambda what: None,
    **changes: Any,
) -> dict[str, Any]:
    """Probe a run's checkpoint on a labelled source; also written to evaluation.json and report.md.

    which: `latest`, `best` (by training.keep_best) or a checkpoint's folder.  probes: in the order of the columns.
    beside: weights from elsewhere, a row each.
    known_rows: rows that need no probing, such as the pixels' from another run's evaluation on the same images.
    say: receives what is being done, some minutes in all.
    changes: fields of EvaluationConfig to use in place of the run's. Returns one evaluation as in run_report.py.
    InputError for what is not there (labels, classes in common, a checkpoint, a probe), a memory that is full and
    features that a probe cannot use, ShardError for damaged shards.
    """
    config = load_saved_config(folder)
    settings = parse(
        EvaluationConfig,
        config.evaluation.model_dump() | {key: value for key, value in changes.items() if value is not None},
        "evaluation",
    )
    name = source or settings.source or config.data.sources[0].name
    path = checkpoint_files.choose(folder / "checkpoints", which, config.training.keep_best)
    trained_on = config.training.device
    device = choose_device(trained_on if trained_on in devices_here() else "auto")  # it may have been trained elsewhere
    encoders, objective = _encoders(folder, config, path, device)
    data = config.data
    others = {init.called: _beside(init, data, device) for init in beside}
    split = held_out_split(data, name, settings.split)
    require_shared_classes(data, name, split)

    @cache
    def read() -> tuple[Labelled, Labelled, Apart, Apart]:
        bank, test, left_out, unseen = read_bank_and_test(data, settings, name, split, device)
        say(f"{len(bank):,} images of {name} train to learn from, {len(test):,} of {name} {split} to be tested on")
        for images in (bank, test):
            if images.unlabelled:
                say(f"{images.unlabelled:,} more of {name} {images.split} have no label and are left out")
        return bank, test, left_out, unseen

    decides = _images(config, settings, name, split)
    finished = Finished(folder / "evaluated.jsonl")
    counts = finished.get(digest(decides), "chance")
    if counts is None:
        bank, test, left_out, unseen = read()
        counts = {"chance": chance(bank.labels, test.labels), "bank": len(bank), "test": len(test)}
        if bank.unlabelled or test.unlabelled:
            counts["unlabelled"] = {"bank": bank.unlabelled, "test": test.unlabelled}
        counts |= {key: apart.as_dict() for key, apart in (("left_out", left_out), ("unseen", unseen)) if apart.images}
        finished.put(digest(decides), "chance", counts)
    rows = list(known_rows)
    known = {row["features"] for row in known_rows}
    for features, encoder in {"raw pixels": None, "PCA-30": None, **encoders}.items():
        if features not in known:
            key = digest({**decides, "features": features, **_weights(config, path, features, encoder)})
            subject = partial(lambda name, encoder: _Subject(name, *read()[:2], data, encoder), features, encoder)
            rows.append(_row(features, key, finished, probes, subject, say))
    own: dict[str, Any] = {}
    if isinstance(objective, Classifies):
        key = digest({**decides, "classifier": checkpoint_files.identity(path), "classes": objective.class_names})
        own = _own_classifiers(objective, key, finished, data, lambda: read()[1], say)
        for row in rows:
            row |= own["right"].get(row["features"], {})
    for features, (encoder, theirs, about) in others.items():
        key = digest({**decides, "features": features, **about})
        subject = partial(
            lambda name, encoder, data: _Subject(name, *read()[:2], data, encoder), features, encoder, theirs
        )
        rows.append(_row(features, key, finished, probes, subject, say))
    result = {
        "source": name,
        "split": split,
        "checkpoint": path.name,
        "bank": counts["bank"],
        "test": counts["test"],
        **{key: counts[key] for key in ("left_out", "unseen", "unlabelled") if key in counts},
        **{key: own[key] for key in ("classes", "confusion") if key in own},
        "crop_share": settings.crop_share,
        "chance": counts["chance"],
        "protocol": PROTOCOL,
        "rows": rows,
    }
    _remember(folder / "evaluation.json", result)
    write_report(folder)
    return result


def evaluate_all(folder: Path, sources: Sequence[str], *, split: str | None = None, **how: Any) -> list[dict[str, Any]]:
    """`evaluate` on each of several sources; all of them are looked for before the first is probed.

    sources: none for the configuration's own. how: as `evaluate` takes it.
    """
    config = load_saved_config(folder)
    for source in sources:
        require_shared_classes(
            config.data, source, held_out_split(config.data, source, split or config.evaluation.split)
        )
    return [evaluate(folder, source=source, split=split, **how) for source in sources or [None]]


def probes_named(text: str) -> tuple[Probe, ...]:
    """`linear,knn` as a user writes it. InputError naming what is not known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PROBES:
            raise InputError(f"--probe {text}: some of {', '.join(PROBES)}, with commas, expected, {name} found")
    if not names:
        raise InputError(f"--probe {text}: some of {', '.join(PROBES)}, with commas, expected, none found")
    return tuple(probe for probe in PROBES if probe in names)


@final
class _Subject:
    """One kind of features of bank and test; each form of them is made once, and only where a probe asks for it."""

    def __init__(self, name: str, bank: Labelled, test: Labelled, data: DataConfig, encoder: Backbone | None) -> None:
        self.name, self.bank, self.test, self.data, self.encoder = name, bank, test, data, encoder

    @cached_property
    def pooled(self) -> Split:
        form = pixels if self.encoder is None else partial(pooled_features, self.encoder, self.data)
        bank, test = features_of(self.bank, form), features_of(self.test, form)
        return self._split(*(pca(bank, test) if self.name == "PCA-30" else (bank, test)))

    def stages(self, encoder: Backbone) -> Split:
        form = partial(last_stages, encoder, self.data)
        return self._split(features_of(self.bank, form), features_of(self.test, form))

    def _split(self, bank_ND: Tensor, test_MD: Tensor) -> Split:
        bank, test = self.bank.labels, self.test.labels
        return checked(self.name, "bank", bank_ND, bank), bank, checked(self.name, "test", test_MD, test), test

    def linear(self) -> dict[str, float]:
        accuracy, l2 = linear_probe(*self.pooled)
        return {"linear": accuracy, "dims": self.pooled[0].shape[1], "l2": l2}

    def knn(self) -> dict[str, float]:
        plain, centred, whitened = knn_probe(*self.pooled)
        dims = self.pooled[0].shape[1]
        return {"knn": plain, "knn_centred": centred, "knn_whitened": whitened, "dims": dims}

    def ridge(self) -> dict[str, float]:
        accuracy, l2 = ridge_probe(*self.pooled)
        return {"ridge": accuracy, "dims": self.pooled[0].shape[1], "ridge_l2": l2}

    def sgd(self) -> dict[str, float]:
        accuracy, lr = sgd_probe(*self.pooled)
        found = {"sgd": accuracy, "dims": self.pooled[0].shape[1], "sgd_lr": lr}
        if self.encoder is not None:
            found["sgd_last4"], found["sgd_last4_lr"] = sgd_probe(*self.stages(self.encoder))
        return found

    def attentive(self) -> dict[str, float]:
        """Nothing for pixels, which have no tokens."""
        if self.encoder is None:
            return {}
        _, bank_labels, _, test_labels = self.pooled  # checked
        bank, test = (token_reader(self.encoder, self.data, part) for part in (self.bank, self.test))
        accuracy, lr = attentive_probe(bank, bank_labels, test, test_labels)
        return {"attentive": accuracy, "dims": self.encoder.width, "attentive_lr": lr}


def _row(
    features: str,
    key: str,
    finished: Finished,
    probes: Sequence[Probe],
    subject: Callable[[], _Subject],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """A row of the table, whatever of it is finished already: these probes, and all that were requested earlier."""
    missing: list[Probe] = [probe for probe in probes if finished.get(key, probe) is None]
    done = [probe for probe in probes if probe not in missing]
    if done:
        say(f"known already: {features} ({', '.join(done)})")
    if missing:
        say(f"probing {features} ({', '.join(missing)})")
        of = subject()
        ways: dict[Probe, Callable[[], dict[str, float]]] = {
            "linear": of.linear,
            "knn": of.knn,
            "ridge": of.ridge,
            "sgd": of.sgd,
            "attentive": of.attentive,
        }
        for probe in missing:
            with probe_failures(f"{features}: {probe}", "set --bank and --test lower"):
                finished.put(key, probe, ways[probe]())
    found: dict[str, float] = {}
    for probe in PROBES:
        found |= finished.get(key, probe) or {}
    return {"features": features} | {column: found[column] for column in _COLUMNS if column in found}


def _own_classifiers(
    objective: Classifies,
    key: str,
    finished: Finished,
    data: DataConfig,
    test: Callable[[], Labelled],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """{"right": encoder -> its numbers}, and of the last encoder "classes", and "confusion" where they are few.

    key: of what decides them.  test: called where they are not finished yet.
    """
    known = finished.get(key, "own")
    if known is not None:
        return known
    images = test()
    say(f"asking the run's own classifier about {len(images):,} images")
    parts = [answers(objective, data, batch) for batch in images.batches()]
    said = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    truth_N = truth(objective, data, images)
    if not (truth_N >= 0).any():
        say("none of its classes is known to the run's own classifier, which is not scored")
        return {"right": {}}
    right = {
        name: {"own": percent_right(said_N5, truth_N), "own_top5": percent_right(said_N5, truth_N, 5)}
        for name, said_N5 in said.items()
    }
    last = said[list(said)[-1]]
    found: dict[str, Any] = {"right": right, "classes": by_class(last, truth_N, objective.class_names)}
    if len(objective.class_names) <= _MOST_CONFUSED:
        found["confusion"] = {"names": list(objective.class_names), "counts": confusion(last, truth_N)}
    finished.put(key, "own", found)
    return found


def _encoders(
    folder: Path, config: RunConfig, path: Path, device: torch.device
) -> tuple[dict[str, Backbone], Objective]:
    """(the encoders of a checkpoint and the one the run began with, the objective)"""
    mixture = load_mixture(config.data, config.run.name)
    num_steps = mixture.make_plan(config.run.seed).num_steps(config.training.epochs, config.training.global_batch)
    backbone, objective = build_parts(config, num_steps, config.run.name, read_facts(folder) or facts_of(mixture))
    untrained = copy.deepcopy(backbone)
    restore(checkpoint_files.load(path), objective)
    found = {"untrained": untrained, **objective.encoders()}
    return {name: encoder.to(device).eval() for name, encoder in found.items()}, objective.to(device).eval()


def _beside(init: InitConfig, data: DataConfig, device: torch.device) -> tuple[Backbone, DataConfig, dict[str, Any]]:
    """(an encoder with weights from elsewhere, the pixels as it knows them, what decides its features)"""
    found = find(init)
    built = build_with(found, data.image_size, init.leave)
    known = {
        name: found.about[key] for key, name in (("mean", "pixel_mean"), ("std", "pixel_std")) if key in found.about
    }
    theirs = parse(DataConfig, data.model_dump() | known, f"{found.source}: mean, std")
    statistics = [list(theirs.pixel_mean), list(theirs.pixel_std)]
    about = {"pixels": statistics, "weights": built.fitted.digest, "backbone": built.config}
    return built.backbone.to(device).eval(), theirs, about


def _images(config: RunConfig, settings: EvaluationConfig, source: str, split: str) -> dict[str, Any]:
    """What decides which pixels and labels are probed."""
    data = config.data
    manifests = [manifest_at(place_of(data.root, source, part)) for part in ("train", split)]
    return {
        "source": source,
        "images": [manifest.content_digest for manifest in manifests],
        "classes": [list(manifest.class_names) for manifest in manifests],
        "limits": [settings.bank, settings.test],
        "crop_share": settings.crop_share,
        "image_size": data.image_size,
    }


def _weights(config: RunConfig, path: Path, features: str, encoder: Backbone | None) -> dict[str, Any]:
    """What decides a row's features beside the images."""
    if encoder is None:
        return {}
    statistics = [list(config.data.pixel_mean), list(config.data.pixel_std)]
    if features == "untrained":
        return {"pixels": statistics, "backbone": config.backbone, "seed": config.run.seed}
    return {"pixels": statistics, "checkpoint": checkpoint_files.identity(path)}


def _remember(path: Path, result: dict[str, Any]) -> None:
    """Put a result into evaluation.json, in place of an earlier one of the same source and split."""
    results = read_evaluations(path)
    same = (result["source"], result["split"])
    results = [other for other in results if (other["source"], other["split"]) != same] + [result]
    write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
