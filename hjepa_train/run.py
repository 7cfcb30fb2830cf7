"""A run: its configuration, its parts, its folder. The only place where parts meet.

runs/<name>/  config.yaml  metrics.jsonl  report.md  evaluation.json  checkpoints/step-<n>/  tensorboard/  skipped.jsonl
"""

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, field_validator

from hjepa_shards import Batch as Loaded
from hjepa_shards import (
    DataConfig,
    InputError,
    Mixture,
    ResumeMismatch,
    Strict,
    add_proofs,
    exclusive,
    flatten,
    load_mixture,
    load_yaml,
    open_loader,
    overridden,
    parse,
    write_atomically,
)
from hjepa_train import checkpoint, schedules
from hjepa_train.backbones import BACKBONES, Backbone, build_backbone
from hjepa_train.data import page_locked, to_micro_batches
from hjepa_train.distributed import Agreement, gather, joined, on_first, rank, world_size
from hjepa_train.guard import Guard
from hjepa_train.heldout import EvaluationConfig
from hjepa_train.interrupts import interrupts, leave
from hjepa_train.journal import truncate_metrics
from hjepa_train.metrics import Alarms
from hjepa_train.objectives import OBJECTIVES, Objective
from hjepa_train.optim import OptimConfig, build_optimizer
from hjepa_train.runlog import RunLog
from hjepa_train.scale import ScaleConfig, lay_out
from hjepa_train.trainer import Schedule, fit
from hjepa_train.watch import Watch, find_labels

CONFIG_FILE = "config.yaml"
_HALVES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SKIPPED = "skipped.jsonl"
_SCALES_TRIED = 24
"""Halvings of fp16's first loss scale, 2^16, before a run is given up."""


class RunSection(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run's folder."""
    seed: int = Field(default=0, ge=0)
    """Of the order of samples, crops, masks and weights."""
    folder: Path = Path("runs")
    """Where run folders stand."""


class TrainingConfig(OptimConfig, ScaleConfig):
    """How long, how large, how fast; AdamW's settings and those of scale.py are among these keys."""

    epochs: int = Field(ge=1)
    """Of data.epoch_samples positions each."""
    global_batch: int = Field(ge=2)
    """Images of an optimizer step, over all ranks and micro-batches."""
    micro_batch: int | None = Field(default=None, ge=2)
    """Images a rank works on at once; by default its whole part of the global batch."""
    warmup_epochs: float | None = Field(default=None, ge=0)
    """Of the learning rate, from 0 to its peak; by default a tenth of the run."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of matrix products; fp16 with a loss that is scaled."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = Field(default=0, ge=0)
    """Threads of a CPU run's arithmetic; 0 is one a core. Equal bits need equal threads."""
    ranks_timeout_s: int = Field(default=600, ge=1)
    """How long the ranks of a run wait for one that is lost."""
    save_every_steps: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest ones."""
    keep_best: str | None = None
    """And the one with the largest value of a probe during the run: knn_target, say; null for none."""


class LoggingConfig(Strict):
    tensorboard: bool = True
    every_steps: int = Field(default=20, ge=1)


class RunConfig(Strict):
    """One file describes a run."""

    run: RunSection
    data: DataConfig
    backbone: dict[str, dict[str, Any]]
    """Exactly one, by its name: {vit: {size: small, patch: 16}}."""
    objective: dict[str, dict[str, Any]]
    """Exactly one, by its name: {hjepa: {levels: 3}}."""
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("backbone", "objective")
    @classmethod
    def _exactly_one(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(value) != 1:
            raise ValueError(f"exactly one name expected, found {', '.join(value) or 'none'}")
        return value


def load_run_config(path: Path, changes: Sequence[str] = ()) -> RunConfig:
    """A run's file, checked to the last key. InputError naming every wrong one.

    changes: `training.lr=1e-4`, in place of what stands there.
    """
    config = parse(RunConfig, overridden(load_yaml(path), changes, str(path)), str(path))
    _room(config.backbone, BACKBONES, f"{path}: backbone")
    _room(config.objective, OBJECTIVES, f"{path}: objective")
    return config


def build_parts(config: RunConfig, num_steps: int, where: str) -> tuple[Backbone, Objective]:
    """Backbone and objective of a run with their initial weights, a function of the configuration alone.

    where: what to call the configuration in errors.
    """
    backbone_name, backbone_config, _ = _room(config.backbone, BACKBONES, f"{where}: backbone")
    name, objective_config, objective = _room(config.objective, OBJECTIVES, f"{where}: objective")
    if config.data.augmentation.views != objective.num_views:
        raise InputError(
            f"{where}: data.augmentation.views: {objective.num_views} expected, for {name} takes so many crops of an "
            f"image, {config.data.augmentation.views} found"
        )
    size, seed = config.data.image_size, config.run.seed
    try:
        backbone = build_backbone(backbone_name, backbone_config, size, seed=seed)
        return backbone, objective(backbone, objective_config, image_size=size, num_steps=num_steps, seed=seed)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def train(
    config: RunConfig,
    *,
    where: str | None = None,
    resume: str | None = None,
    stop_after: int | None = None,
    accept_mixture: bool = False,
    accept_content: bool = False,
) -> Path:
    """Run a configuration to its end, or to step `stop_after`. Returns the run's folder.

    where: what to call the configuration in errors, usually its file.
    resume: None begins (refused where checkpoints stand), "auto" goes on from the latest checkpoint or begins, a path
    goes on from that checkpoint.
    """
    folder = config.run.folder / config.run.name
    mixture = load_mixture(config.data, where or config.run.name)
    with (
        joined(choose_device(config.training.device), config.training.ranks_timeout_s) as device,
        contextlib.ExitStack() as held,
    ):
        found = on_first(lambda: _take(folder, resume, held))
        saved = checkpoint.load(found) if found else None
        if saved:
            _refuse_other_recipe(saved.state["config"], config, saved.path)
        _train(
            config,
            mixture,
            folder,
            where or config.run.name,
            device,
            saved,
            resume,
            stop_after,
            accept_mixture,
            accept_content,
        )
    return folder


def _take(folder: Path, resume: str | None, held: contextlib.ExitStack) -> Path | None:
    """Have the run's folder for this process alone. Returns the checkpoint to go on from."""
    held.enter_context(_run_folder(folder))
    held.enter_context(exclusive(folder, "another run is writing here; wait for it, or choose another run.name"))
    checkpoint.recover(folder / "checkpoints")
    return _checkpoint_to_resume(folder, resume)


def _train(
    config: RunConfig,
    mixture: Mixture,
    folder: Path,
    where: str,
    device: torch.device,
    saved: checkpoint.Checkpoint | None,
    resume: str | None,
    stop_after: int | None,
    accept_mixture: bool,
    accept_content: bool,
) -> None:
    training, seed = config.training, config.run.seed
    if training.threads:
        torch.set_num_threads(training.threads)
    num_steps = mixture.make_plan(seed).num_steps(training.epochs, training.global_batch)
    _, objective = build_parts(config, num_steps, where)
    lay_out(objective.to(device), training)
    optimizer = build_optimizer(objective, training)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
    alarms = Alarms(warmup_steps=_warmup_steps(config, mixture, num_steps))
    if saved:
        _refuse_other_statistics(saved, config, objective)
        checkpoint.restore_model(objective, saved.model, saved.path)
        optimizer.load_state_dict(saved.optimizer)
        alarms.load_state_dict(saved.state["alarms"])
        scaler.load_state_dict(saved.state.get("scaler", {}))
    recipe = checkpoint.recipe_facts(device=device, world_size=world_size(), eager=not training.compile)
    start = saved.step if saved else 0
    stop = min(num_steps, stop_after or num_steps)
    if stop_after is not None and stop_after <= start:
        raise InputError(f"--stop-after {stop_after}: a step behind {start} expected, where this run goes on")
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(
            open_loader(
                mixture,
                seed=seed,
                global_batch=training.global_batch,
                rank=rank(),
                world=world_size(),
                state=saved.state["loader"] if saved else None,
                accept_mixture=accept_mixture,
                accept_content=accept_content,
                allocate=page_locked(device),
                stops_alone=world_size() == 1,
            )
        )
        per_epoch = mixture.epoch_samples / training.global_batch
        watched = on_first(
            lambda: find_labels(
                config.data, config.evaluation, steps_per_epoch=per_epoch, global_batch=training.global_batch
            )
        )
        watch = Watch(
            watched,
            objective.encoders(),
            config.data,
            config.evaluation,
            num_steps=num_steps,
            log_every=config.logging.every_steps,
            checkpoints=folder / "checkpoints",
            keep_best=training.keep_best,
            say=lambda text: log.say(text),
        )
        on_first(lambda: _begin_files(folder, config, start))
        log = RunLog(
            folder, num_steps=num_steps, start=start, tensorboard=config.logging.tensorboard, silent=rank() > 0
        )
        stack.enter_context(contextlib.closing(log))
        if saved:
            log.say(f"going on from {saved.path}: step {start} of {num_steps}")
            for difference in checkpoint.compare_recipe(saved.state["recipe"], recipe):
                log.say(f"[yellow]note[/yellow] {difference}: the order goes on exactly, the bits may not")
        elif resume:
            log.say(f"beginning at step 0 of {num_steps}: no checkpoint in {folder} yet")

        def save(step: int, loaded: Loaded) -> None:
            whole = replace(loaded, proof=add_proofs(*gather(loaded.proof)))
            on_first(
                lambda: checkpoint.save(
                    folder / "checkpoints",
                    step,
                    model=objective.state_dict(),
                    optimizer=optimizer.state_dict(),
                    state={
                        "config": config.model_dump(mode="json"),
                        "loader": loader.state_dict(whole),
                        "alarms": alarms.state_dict(),
                        "scaler": scaler.state_dict(),
                        "recipe": recipe,
                        "probe": watch.at(step),
                    },
                    keep=training.keep_checkpoints,
                    keep_best=training.keep_best,
                )
            )

        came, agreed = stack.enter_context(interrupts()), Agreement()
        try:
            reached = fit(
                objective,
                optimizer,
                loader,
                start=start,
                stop=stop,
                schedule=_schedule(config, mixture, num_steps),
                seed=seed,
                prepare=partial(
                    to_micro_batches,
                    config=config.data,
                    micro_batch=_micro_batch(training, world_size()),
                    seed=seed,
                    device=device,
                ),
                autocast=partial(
                    torch.autocast, device.type, _HALVES[training.precision], enabled=training.precision != "fp32"
                ),
                scaler=scaler,
                alarms=alarms,
                guard=Guard(
                    folder / _SKIPPED,
                    [entry.name for entry in loader.plan.entries],
                    log.say,
                    allowed=_SCALES_TRIED if scaler.is_enabled() else 1,
                ),
                log=log,
                probe=watch,
                save=save,
                stopping=lambda: agreed(came()) > 0,
            )
        except torch.OutOfMemoryError as error:
            raise InputError(_advice_on_memory(training, objective, device)) from error
        if reached < num_steps:
            log.say(f"stopped after step {reached} of {num_steps}, saved; --resume auto goes on")
    if agreed.last and reached < stop:
        leave(agreed.last)


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _schedule(config: RunConfig, mixture: Mixture, num_steps: int) -> Schedule:
    training = config.training
    fixed = training.weight_decay
    return Schedule(
        num_steps=num_steps,
        lr=partial(
            schedules.learning_rate,
            num_steps=num_steps,
            peak=training.lr,
            warmup_steps=_warmup_steps(config, mixture, num_steps),
        ),
        weight_decay=partial(schedules.weight_decay, num_steps=num_steps) if fixed is None else lambda step: fixed,
        log_every=config.logging.every_steps,
        save_every=training.save_every_steps,
    )


def _warmup_steps(config: RunConfig, mixture: Mixture, num_steps: int) -> int:
    epochs = config.training.warmup_epochs
    if epochs is None:
        return max(1, num_steps // 10)
    return min(num_steps, math.ceil(epochs * mixture.epoch_samples / config.training.global_batch))


def _room(
    chosen: dict[str, dict[str, Any]], rooms: dict[str, tuple[type[Strict], Any]], where: str
) -> tuple[str, Strict, Any]:
    """(name, its parsed configuration, what builds it)."""
    ((name, content),) = chosen.items()
    if name not in rooms:
        raise InputError(f"{where}: unknown name `{name}`; known: {', '.join(rooms)}")
    model, builder = rooms[name]
    return name, parse(model, content or {}, f"{where}.{name}"), builder


def _checkpoint_to_resume(folder: Path, resume: str | None) -> Path | None:
    newest = checkpoint.latest(folder / "checkpoints")
    if resume == "auto":
        return newest
    if resume is not None:
        inner = Path(resume) / "checkpoints"
        if inner.is_dir() or Path(resume).name == "checkpoints":
            raise InputError(
                f"--resume {resume}: the folder of one checkpoint expected, that of a run found; say `--resume auto`, "
                f"or {newest or inner / 'step-...'}"
            )
        if not Path(resume).is_dir():
            raise InputError(
                f"--resume {resume}: `auto` or the folder of a checkpoint expected, none found; the latest of "
                f"this run: {newest or 'none'}"
            )
        return Path(resume)
    if newest:
        raise InputError(
            f"{folder}: holds checkpoints up to {newest.name}; go on with `--resume auto`, or choose another run.name"
        )
    return None


def _refuse_other_recipe(saved: dict[str, Any], config: RunConfig, where: Path) -> None:
    """What decides the numbers must be as it was; the mixture has rules of its own (hjepa_shards/state.py)."""
    free = {
        f"training.{name}"
        for name in (
            *(
                "device",
                "threads",
                "ranks_timeout_s",
                "save_every_steps",
                "keep_checkpoints",
                "keep_best",
                "micro_batch",
            ),
            *ScaleConfig.model_fields,
        )
    }
    decides = ("backbone.", "objective.", "training.", "data.image_size", "data.augmentation.", "data.pixel_")
    before, now = flatten(saved), flatten(config.model_dump(mode="json"))
    differences = [
        f"{key}: {before.get(key)} saved, {now.get(key)} here"
        for key in dict.fromkeys([*before, *now])
        if key.startswith(decides) and key not in free and before.get(key) != now.get(key)
    ]
    if differences:
        raise ResumeMismatch(
            f"{where}: this run was begun otherwise: {'; '.join(differences)}; restore those settings, or "
            "choose another run.name"
        )


def _refuse_other_statistics(saved: checkpoint.Checkpoint, config: RunConfig, objective: Objective) -> None:
    """Where a loss depends on which images stand together, as many must go on doing so."""
    was = RunConfig.model_validate(saved.state["config"]).training
    world, before = world_size(), saved.state["recipe"]["world_size"]
    together, now = _micro_batch(was, before) * before, _micro_batch(config.training, world) * world
    if together != now and not objective.is_additive:
        raise ResumeMismatch(
            f"{saved.path}: this run was begun otherwise: its statistics are those of {together} images (micro-batches "
            f"of all ranks), {now} here; set `training.micro_batch: {together // world}`, or another number of ranks"
        )


def _micro_batch(training: TrainingConfig, world: int) -> int:
    """Images that a rank works on at once."""
    return training.micro_batch or training.global_batch // world


def _advice_on_memory(training: TrainingConfig, objective: Objective, device: torch.device) -> str:
    now, rows = _micro_batch(training, world_size()), training.global_batch // world_size()
    smaller = max((size for size in range(2, now // 2 + 1) if rows % size == 0), default=None)
    advice = f"set `training.micro_batch: {smaller}`" if smaller else "choose a smaller backbone or data.image_size"
    if smaller and not objective.is_additive:
        advice += ", and `statistics: exact`, with which the loss is that of any other micro-batch"
    return f"{device}: its memory is full with micro-batches of {now} images; {advice}"


@contextlib.contextmanager
def _run_folder(folder: Path) -> Iterator[None]:
    """Made where it is missing, and gone again where a run was refused before it wrote anything."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}; choose another run.folder") from error
    try:
        yield
    except InputError:
        if is_new and not (folder / CONFIG_FILE).exists():
            shutil.rmtree(folder)
        raise


def _begin_files(folder: Path, config: RunConfig, start: int) -> None:
    for name in ("metrics.jsonl", _SKIPPED):
        truncate_metrics(folder / name, start - 1)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG_FILE, text.encode())
