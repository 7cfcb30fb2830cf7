"""What the encoders know about labels while they train: k-NN and a ridge probe on a few held-out images.

A JEPA's loss does not show whether it learns; this curve does. At the first step, every few epochs and at the last
step, on rank 0 while the others wait: each encoder's pooled features of some thousand images in single precision, then
both probes in closed form (linear_knn_probes.py, ridge_probe.py). k-NN is the `knn` of `hjepa-train eval`, on a smaller
bank.

Training does not notice: no gradient, no random number, no weight or buffer is touched. Images are kept as bytes where
they fit into 256 MiB, and read again from the shards each time where they do not.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from hjepa_shards import DataConfig, manifest_at, place_of
from hjepa_shards.base.terminal import escape
from hjepa_shards.errors import InputError, ShardError
from hjepa_train.base.distributed import on_first
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.data.labelled_images import EvaluationConfig, held_out_split, labelled_batches, pooled_features
from hjepa_train.data.shared_classes import counted, require_shared_classes
from hjepa_train.evaluation.linear_knn_probes import full_precision, knn_accuracy
from hjepa_train.evaluation.ridge_probe import ridge_probe
from hjepa_train.objectives.base import Objective
from hjepa_train.parallel.layout import gathered, uncompiled

_MOST_KEPT_BYTES = 2**28
_IMAGES_BETWEEN = 20
"""By default at least this many times as many images are trained on as are probed."""


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
    is_whole: bool
    """The bank is all of train."""
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

    say: receives why labels that are there cannot be compared.
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
        for name in ("train", split):
            _, labels = next(labelled_batches(data, source, name, 32, settings.crop_share))
            if (labels == -1).all():
                raise InputError(
                    f"evaluation.during_every_epochs: labels in {place_of(data.root, source, name)} expected, none "
                    "found; name a labelled source in evaluation.source, or set it to 0"
                )
    except (InputError, ShardError):
        if epochs is None:
            return None
        raise
    num_train, num_test = (manifest_at(place_of(data.root, source, name)).num_samples for name in ("train", split))
    bank, test = min(settings.during_bank, num_train), min(settings.during_test, num_test)
    if epochs is None:
        epochs = max(1, math.ceil(_IMAGES_BETWEEN * (bank + test) / global_batch / steps_per_epoch))
    return ProbePlan(
        source=source,
        split=split,
        bank=bank,
        test=test,
        is_whole=bank == num_train,
        every=max(1.0, epochs * steps_per_epoch),
    )


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
        self._num_steps, self._log_every = num_steps, log_every
        self._checkpoints, self._keep_best, self._say = checkpoints, keep_best, say
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._last: tuple[int, dict[str, float]] = (0, {})
        self._best = -math.inf

    def __call__(self, step: int) -> tuple[dict[str, float], bool]:
        """Percent right after `step` updates, nothing where no probe is due; whether they are the best so far."""
        if self._plan is None or not self._is_due(step):
            return {}, False
        with gathered(self._objective):
            values, is_best = on_first(lambda: self._probe_and_compare(step))
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
        value = values.get(self._keep_best or "", math.nan)
        saved = checkpoint_files.best(self._checkpoints, self._keep_best, up_to=step - 1) if self._keep_best else None
        before = max(self._best, saved[1] if saved else -math.inf)  # the last one may still be on its way to the disk
        if not value > before:
            return values, False
        self._best = value
        return values, True

    @torch.no_grad()
    def _probe(self) -> dict[str, float]:
        assert self._plan
        bank, bank_labels = self._features("train", self._plan.bank)
        test, test_labels = self._features(self._plan.split, self._plan.test)
        counts = counted(bank_labels, test_labels, is_whole=self._plan.is_whole)
        if not counts.any():
            raise self._nothing_to_test()
        test, test_labels = {name: features[counts] for name, features in test.items()}, test_labels[counts]
        values: dict[str, float] = {}
        for name in self._encoders:
            finite = bool(bank[name].isfinite().all() and test[name].isfinite().all())
            split = (bank[name], bank_labels, test[name], test_labels)
            with full_precision():
                values[f"knn_{name}"] = knn_accuracy(*split) if finite else math.nan
                values[f"ridge_{name}"] = ridge_probe(*split)[0] if finite else math.nan
        return dict(sorted(values.items()))

    def _features(self, split: str, limit: int) -> tuple[dict[str, Tensor], Tensor]:
        """Each encoder's features of the labelled images among the first `limit` of a split, and their labels."""
        found: dict[str, list[Tensor]] = {name: [] for name in self._encoders}
        every_label: list[Tensor] = []
        with _evaluating(self._encoders.values()):
            for images, labels in self._batches(split, limit):
                if not (labels >= 0).any():
                    continue
                for name, encoder in self._encoders.items():
                    on_device = images[labels >= 0].to(next(encoder.parameters()).device)
                    found[name].append(pooled_features(encoder, on_device, self._data).float())
                every_label.append(labels[labels >= 0])
        if not every_label:
            raise self._nothing_to_test()
        features = {name: torch.cat(parts) for name, parts in found.items()}
        return features, torch.cat(every_label).to(next(iter(features.values())).device)

    def _nothing_to_test(self) -> InputError:
        assert self._plan
        return InputError(
            f"{place_of(self._data.root, self._plan.source, self._plan.split)}: images of classes that train has "
            f"images of expected, none among {self._plan.test:,}; name another split in evaluation.split"
        )

    def _batches(self, split: str, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._plan
        if split in self._kept:
            return iter(self._kept[split])
        batches = labelled_batches(self._data, self._plan.source, split, limit, self._settings.crop_share)
        images = self._plan.bank + self._plan.test
        if images * 3 * self._data.image_size**2 > _MOST_KEPT_BYTES:
            return batches
        self._kept[split] = list(batches)
        return iter(self._kept[split])


@contextmanager
def _evaluating(encoders: Iterable[nn.Module]) -> Iterator[None]:
    """In evaluation mode and uncompiled; each part is back in its own mode after it."""
    modes = [(part, part.training) for encoder in encoders for part in encoder.modules()]
    for part, _ in modes:
        part.training = False
    try:
        with uncompiled():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
