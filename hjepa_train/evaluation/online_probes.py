"""What the encoders know about labels while they train: k-NN and a ridge probe on a few held-out images.

A JEPA's loss does not show whether it learns; this curve does. At the first step, every few epochs and at the last
step: each encoder's pooled features of some thousand images in single precision, then both probes in closed form
(linear_knn_probes.py, ridge_probe.py). k-NN is the `knn` of `hjepa-train eval`, on a smaller bank. An objective that
classifies is scored on the same test besides (own_classifier.py).

Each rank encodes its share of the images, as many batches as the others, and has all features in the end. The ranks
meet after each batch of each encoder and after each probe, so that none waits for another longer than one of these
takes, and a failure on one ends the probe on all. It does not end the run.

Training does not notice: no gradient, no random number, no weight or buffer is touched. Images are read from the shards
each time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hjepa_shards import DataConfig, manifest_at, place_of
from hjepa_shards.base.terminal import escape
from hjepa_shards.errors import InputError, ShardError
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.distributed import gather, on_all, on_first, rank, world_size
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.data.labelled_images import (
    BATCH,
    EvaluationConfig,
    Labelled,
    held_out_split,
    read_bank_and_test,
    split_labels,
)
from hjepa_train.data.shared_classes import require_shared_classes
from hjepa_train.evaluation.frozen_features import pooled_features
from hjepa_train.evaluation.linear_knn_probes import full_precision, knn_accuracy
from hjepa_train.evaluation.own_classifier import answers, percent_right, truth
from hjepa_train.evaluation.probe_failures import probe_failures
from hjepa_train.evaluation.ridge_probe import ridge_probe
from hjepa_train.objectives.base import Classifies, Objective
from hjepa_train.parallel.layout import gathered, looking_on

Value = TypeVar("Value")

_IMAGES_BETWEEN = 20
"""By default at least this many times as many images are trained on as are probed."""
_FEWER = "set evaluation.during_bank and during_test lower, or evaluation.during_every_epochs to 0"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ProbePlan:
    """What is probed, and how often."""

    source: str
    split: str
    bank: int
    """Images of `source` train."""
    test: int
    """Images of `split`."""
    every: float
    """Steps between two probes."""


def find_labels(
    data: DataConfig,
    settings: EvaluationConfig,
    *,
    steps_per_epoch: float,
    global_batch: int,
    say: Callable[[str], None] = lambda text: None,
) -> ProbePlan | None:
    """What to probe during a run, None for nothing: by choice, or by default where no labels are there.

    say: receives why labels that are there cannot be compared, and how many of the images have one where not all do.
    InputError where `during_every_epochs` was set and there is nothing to probe.
    """
    epochs = settings.during_every_epochs
    if epochs == 0:
        return None
    source = settings.source or data.sources[0].name
    try:
        split = held_out_split(data, source, settings.split)
        if not _are_comparable(data, source, split, None if epochs else say):
            return None
        num_train, num_test = (manifest_at(place_of(data.root, source, name)).num_samples for name in ("train", split))
        bank, test = min(settings.during_bank, num_train), min(settings.during_test, num_test)
        for name, limit in (("train", bank), (split, test)):
            place, num_labelled = place_of(data.root, source, name), _num_labelled(data, source, name, limit)
            if not num_labelled:
                raise InputError(
                    f"evaluation.during_every_epochs: labels in {place} expected, none found; name a labelled source "
                    "in evaluation.source, or set it to 0"
                )
            if num_labelled < limit:
                say(
                    f"probes during the run: {num_labelled:,} of {limit:,} images of {place} have a label; the others "
                    "are left out"
                )
    except (InputError, ShardError):
        if epochs is None:
            return None
        raise
    if epochs is None:
        epochs = max(1, math.ceil(_IMAGES_BETWEEN * (bank + test) / global_batch / steps_per_epoch))
    return ProbePlan(
        source=source,
        split=split,
        bank=bank,
        test=test,
        every=max(1.0, epochs * steps_per_epoch),
    )


def _num_labelled(data: DataConfig, source: str, split: str, limit: int) -> int:
    return int((split_labels(data, source, split, limit) >= 0).sum())


def _are_comparable(data: DataConfig, source: str, split: str, say: Callable[[str], None] | None) -> bool:
    """Whether labels of the two splits can be compared. say: receives why not; None: InputError."""
    try:
        require_shared_classes(data, source, split)
    except InputError as error:
        if say is None:
            raise
        say(f"no probes during the run: {error}")
        return False
    return True


def require_probe(keep_best: str | None, objective: Objective, *, is_probed: bool) -> None:
    """InputError where no probe gives the value by which the best checkpoint is kept.

    keep_best: its name, None for none.  is_probed: whether there is anything to probe during the run.
    """
    if not keep_best:
        return
    names = [f"{kind}_{name}" for kind in ("knn", "ridge") for name in objective.encoders()]
    if isinstance(objective, Classifies):
        names += [f"own_{name}" for name in objective.encoders()]
    if not is_probed:
        raise InputError(
            f"training.keep_best: {keep_best}: a labelled source to probe during the run expected, none found; "
            "name one in evaluation.source (built, with a train split and a test split), or remove the key"
        )
    if keep_best not in names:
        raise InputError(f"training.keep_best: one of {', '.join(names)} expected, {keep_best} found")


@final
class OnlineProbes:
    """The probes of a run. Called at each log point, on all ranks."""

    def __init__(
        self,
        plan: ProbePlan | None,
        objective: Objective,
        data: DataConfig,
        settings: EvaluationConfig,
        *,
        num_steps: int,
        log_every: int,
        checkpoints: Path,
        keep_best: str | None,
        say: Callable[[str], None],
    ) -> None:
        """keep_best: the name of the value by which a checkpoint is the best. say: receives why a probe failed."""
        encoders = objective.encoders()
        require_probe(keep_best, objective, is_probed=plan is not None)
        self._plan, self._data, self._settings = plan, data, settings
        self._objective, self._encoders = objective, encoders
        self._device = next(objective.parameters()).device
        self._num_steps, self._log_every = num_steps, log_every
        self._checkpoints, self._keep_best, self._say = checkpoints, keep_best, say
        self._images: tuple[Labelled, Labelled] | None = None
        self._last: tuple[int, dict[str, float]] = (0, {})
        self._best = -math.inf

    def __call__(self, step: int) -> tuple[dict[str, float], bool]:
        """Percent right after `step` updates, nothing where no probe is due; whether they are the best so far."""
        if self._plan is None or not self._is_due(step):
            return {}, False
        with gathered(self._objective):
            values, is_best = self._probe_and_compare(step)
        self._last = step, values
        return values, is_best

    def at(self, step: int) -> dict[str, float]:
        """What was found after `step` updates: what a checkpoint of them remembers."""
        last, values = self._last
        return values if last == step else {}

    def _is_due(self, step: int) -> bool:
        """After the first update, at the first log point of each interval, and after the last."""
        assert self._plan
        every = self._plan.every
        return step in (1, self._num_steps) or step // every > (step - self._log_every) // every

    def _probe_and_compare(self, step: int) -> tuple[dict[str, float], bool]:
        try:
            values = self._probe()
        except (InputError, ShardError) as error:  # a run of days does not end for a probe
            self._say(f"[yellow]note[/yellow] no probe after step {step}: {escape(str(error))}")
            return {}, False
        return values, on_first(lambda: self._is_best(values, step))

    def _is_best(self, values: dict[str, float], step: int) -> bool:
        """So far. On the rank that has the checkpoints."""
        value = values.get(self._keep_best or "", math.nan)
        saved = checkpoint_files.best(self._checkpoints, self._keep_best, up_to=step - 1) if self._keep_best else None
        before = max(self._best, saved[1] if saved else -math.inf)  # the last one may still be on its way to the disk
        if not value > before:
            return False
        self._best = value
        return True

    @torch.no_grad()
    def _probe(self) -> dict[str, float]:
        """By all ranks. InputError on all of them where it fails on one."""
        if self._images is None:
            self._images = on_all(self._read_labels)
        bank, test = (self._features(images) for images in self._images)
        bank_labels, test_labels = (images.labels for images in self._images)
        values: dict[str, float] = {}
        for name in self._encoders:
            split = (bank[name], bank_labels, test[name], test_labels)
            for probe, ask in (("knn", knn_accuracy), ("ridge", ridge_probe)):
                values[f"{probe}_{name}"] = self._in_step(name, partial(_percent, ask, split))
        if isinstance(self._objective, Classifies):
            values |= self._own_classifiers(self._objective, self._images[1])
        return gather(dict(sorted(values.items())))[0]

    def _read_labels(self) -> tuple[Labelled, Labelled]:
        assert self._plan
        settings = self._settings.model_copy(update={"bank": self._plan.bank, "test": self._plan.test})
        bank, test, _, _ = read_bank_and_test(self._data, settings, self._plan.source, self._plan.split, self._device)
        return bank, test

    def _features(self, images: Labelled) -> dict[str, Tensor]:
        """Each encoder's [N, D], in manifest order, on all ranks."""
        return self._whole(images, {name: partial(self._encode, encoder) for name, encoder in self._encoders.items()})

    def _own_classifiers(self, objective: Classifies, test: Labelled) -> dict[str, float]:
        """Percent right of each encoder's own classifier."""
        truth_N = self._in_step("own classifier", partial(truth, objective, self._data, test))
        found = self._whole(test, {"own": lambda batch: self._answers(objective, batch)})["own"]
        return {
            f"own_{name}": percent_right(said_N5.cpu(), truth_N)
            for name, said_N5 in zip(self._encoders, found.chunk(len(self._encoders), 1), strict=True)
        }

    def _answers(self, objective: Classifies, images_B3RR: Tensor) -> NDArray[Any]:
        """[B, 5 a classifier], side by side."""
        said = answers(objective, self._data, images_B3RR)
        return torch.cat([said[name] for name in self._encoders], 1).numpy()

    def _whole(self, images: Labelled, forms: Mapping[str, Callable[[Tensor], NDArray[Any]]]) -> dict[str, Tensor]:
        """[N, ...] of what each form makes of uint8 images [B, 3, R, R], in manifest order, on all ranks."""
        world = world_size()
        found: dict[str, list[list[NDArray[Any]]]] = {name: [] for name in forms}
        num_batches = math.ceil(max(len(images.share(one, world)) for one in range(world)) / BATCH)
        batches = images.batches(rank(), world)
        with looking_on(self._objective):
            for _ in range(num_batches):
                batch_B3RR = self._in_step("images", partial(next, batches))
                for name, form in forms.items():
                    part_BD = self._in_step(name, partial(form, batch_B3RR))
                    found[name].append(gather(part_BD))
        return {name: self._in_step(name, partial(self._joined, images, parts)) for name, parts in found.items()}

    def _encode(self, encoder: Backbone, images_B3RR: Tensor) -> NDArray[np.float32]:
        return pooled_features(encoder, self._data, images_B3RR).float().cpu().numpy()

    def _joined(self, images: Labelled, parts: list[list[NDArray[Any]]]) -> Tensor:
        """[N, D] of each batch's features by rank. A share that is a smaller one ends with repeated images."""
        shares = [
            np.concatenate(of_rank)[: len(images.share(number, world_size()))]
            for number, of_rank in enumerate(zip(*parts, strict=True))
        ]
        return torch.from_numpy(np.concatenate(shares)).to(self._device)

    def _in_step(self, name: str, work: Callable[[], Value]) -> Value:
        """Of the encoder `name`, with all ranks."""

        def reporting() -> Value:
            with probe_failures(name, _FEWER):
                return work()

        return on_all(reporting)


def _percent(ask: Callable[..., Any], split: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Right by a probe; NaN for features that are not finite."""
    if not (split[0].isfinite().all() and split[2].isfinite().all()):
        return math.nan
    with full_precision():
        found = ask(*split)
    return found[0] if isinstance(found, tuple) else found
