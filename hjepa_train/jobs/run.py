"""A run: its parts, its folder, its beginning and end. The only module where parts meet.

runs/<name>/  config.yaml  facts.json  metrics.jsonl  report.md  report.html  pictures.png  evaluation.json
              checkpoints/step-<n>/  tensorboard/  skipped.jsonl
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError

from hjepa_shards import Batch as Loaded
from hjepa_shards import Mixture, load_mixture, open_loader
from hjepa_shards.base.atomic_files import exclusive, write_atomically
from hjepa_shards.base.terminal import escape
from hjepa_shards.config import first_problem
from hjepa_shards.errors import InputError
from hjepa_train.base import schedules
from hjepa_train.base.device import choose_device
from hjepa_train.base.device_peaks import images_per_s_at_peak
from hjepa_train.base.distributed import StopVote, gather, joined, on_all, on_first, rank, world_size
from hjepa_train.base.full_memory import reporting_full_memory
from hjepa_train.base.metrics_file import METRICS_FILE, read_metrics, truncate_metrics
from hjepa_train.base.mixture_facts import Facts, facts_of, write_facts
from hjepa_train.base.stop_signals import interrupts, leave
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.checkpoints.background_saver import Saver, restore
from hjepa_train.data.micro_batches import page_locked, to_micro_batches
from hjepa_train.evaluation.online_probes import OnlineProbes, find_labels
from hjepa_train.jobs.extension import Extension, extensions, what_moved
from hjepa_train.jobs.initial_weights import begin_with
from hjepa_train.jobs.rank_facts import ADVICE as RANKS_ADVICE
from hjepa_train.jobs.rank_facts import probe_facts, rank_facts
from hjepa_train.jobs.resume_checks import (
    as_begun,
    refuse_other_statistics,
    refuse_other_steps,
    refuse_parted_rows,
    refuse_uneven_ranks,
)
from hjepa_train.modules.learning_signals import Alarms
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.parallel.equal_ranks import require_same, require_same_weights, share_weights
from hjepa_train.parallel.layout import lay_out
from hjepa_train.parallel.rank_watchdog import RankWatchdog
from hjepa_train.reports.run_log import RunLog
from hjepa_train.reports.run_report import write_report
from hjepa_train.training.config import CONFIG_FILE, RunConfig, TrainingConfig, build_parts
from hjepa_train.training.nonfinite_guard import NonfiniteGuard
from hjepa_train.training.optimizer import build_optimizer, rates
from hjepa_train.training.out_of_memory import micro_batch_of, smaller_steps
from hjepa_train.training.saved_config import resolved, with_values
from hjepa_train.training.trainer import Hooks, Learner, Schedule, fit

_HALVES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SKIPPED = "skipped.jsonl"
SCALES_TRIED = 24
"""Halvings of fp16's first loss scale, 2^16, before a run is given up."""


def train(
    config: RunConfig,
    *,
    where: str | None = None,
    resume: str | None = None,
    stop_after: int | None = None,
    accept_mixture: bool = False,
    accept_content: bool = False,
    extend: bool = False,
) -> Path:
    """Run `config` to its end, or to step `stop_after`, and write its report. Returns the run's folder.

    where: what to call the configuration in errors, usually its file.
    resume: None begins (refused where there are checkpoints), "auto" continues from the latest checkpoint or begins, a
    path continues from that checkpoint.
    accept_mixture, accept_content: continue with other weights or sources, with other pixels in the same order.
    extend: continue to a larger training.epochs; schedules are those of the new length from there on.
    InputError, ResumeMismatch for what the user can fix, ShardError for damaged shards.
    """
    folder, where = config.run.folder / config.run.name, where or config.run.name
    if extend and resume is None:
        raise InputError("--extend: a run to continue expected, none found; say `--resume auto --extend`")
    arguments = {"stop_after": stop_after, "accept_mixture": accept_mixture, "accept_content": accept_content}
    with (
        joined(choose_device(config.training.device), config.training.ranks_timeout_s) as device,
        contextlib.ExitStack() as held,
    ):
        whole, mixture = on_all(lambda: (resolved(config, where), load_mixture(config.data, where)))
        require_same(rank_facts(whole, mixture, device, **arguments, extend=extend), RANKS_ADVICE)
        refuse_uneven_ranks(config.training, world_size())
        found = on_first(lambda: _take(folder, resume, held, extend=extend))
        saved = on_all(lambda: _saved(found)) if found else None
        kept: dict[str, Any] = {}
        if saved:
            require_same({"checkpoint": checkpoint_files.identity(saved.path)}, f"let all of them read {saved.path}")
            kept = on_first(lambda: as_begun(saved, config, where, extend=extend))
        _train(with_values(whole, kept), mixture, folder, where, device, saved, kept, resume, **arguments)
    return folder


def _take(folder: Path, resume: str | None, held: contextlib.ExitStack, *, extend: bool) -> Path | None:
    """Have the run's folder for this process alone. Returns the checkpoint to continue from.

    extend: there must be one.
    """
    held.enter_context(_run_folder(folder))
    held.enter_context(exclusive(folder, "another run is writing here; wait for it, or choose another run.name"))
    checkpoint_files.recover(folder / "checkpoints")
    found = _checkpoint_to_resume(folder, resume)
    if extend and not found:
        raise InputError(
            f"--extend: a run with a checkpoint expected in {folder}, none found; begin it without --extend"
        )
    return found


def _train(
    config: RunConfig,
    mixture: Mixture,
    folder: Path,
    where: str,
    device: torch.device,
    saved: checkpoint_files.Checkpoint | None,
    kept: Mapping[str, Any],
    resume: str | None,
    *,
    stop_after: int | None,
    accept_mixture: bool,
    accept_content: bool,
) -> None:
    training, seed = config.training, config.run.seed
    if training.threads:
        torch.set_num_threads(training.threads)
    num_steps = mixture.make_plan(seed).num_steps(training.epochs, training.global_batch)
    if saved:
        refuse_other_steps(saved, config, mixture)
    warmup = warmup_of(config, mixture, num_steps)
    made = extensions(saved, num_steps, warmup)
    warmup = made[-1].warmup if made else warmup
    facts = facts_of(mixture)
    unsaid: list[str] = []
    began: dict[str, Any] = saved.state.get("init", {}) if saved else {}

    def fill(objective: Objective) -> None:
        init, (name,) = config.init, config.objective
        if init and not saved:
            came = on_first(lambda: begin_with(init, objective, name, where))
            began.update(came.facts)
            unsaid.extend((f"weights of {came.facts['source']}, digest {came.facts['digest']}", *came.notes))

    objective = objective_of(config, num_steps, where, device, facts, fill)
    refuse_parted_rows(training, objective, world_size())
    optimizer = build_optimizer(objective, training)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
    alarms, same_signals = Alarms(warmup_steps=warmup), True
    if saved:
        refuse_other_statistics(saved, config, objective)
        restore(saved, objective, optimizer)
        same_signals = alarms.load_state_dict(saved.state["alarms"])
        try:
            scaler.load_state_dict(saved.state.get("scaler", {}))
        except (KeyError, RuntimeError) as error:
            raise checkpoint_files.damaged(saved.path, f"state.json: its loss scale is not whole: {error}") from error
    require_same_weights(objective)
    recipe = checkpoint_files.recipe_facts(device=device, world_size=world_size(), eager=not training.compile)
    start = saved.step if saved else 0
    stop = min(num_steps, stop_after or num_steps)
    if stop_after is not None and stop_after <= start:
        raise InputError(f"--stop-after {stop_after}: a step after {start} expected, where this run continues")
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
        probe_plan = on_first(
            lambda: find_labels(
                config.data,
                config.evaluation,
                steps_per_epoch=per_epoch,
                global_batch=training.global_batch,
                say=unsaid.append,
            )
        )
        if world_size() > 1:
            require_same(on_all(lambda: probe_facts(config.data, probe_plan)), RANKS_ADVICE)
        probes = OnlineProbes(
            probe_plan,
            objective,
            config.data,
            config.evaluation,
            num_steps=num_steps,
            log_every=config.logging.every_steps,
            checkpoints=folder / "checkpoints",
            keep_best=training.keep_best,
            say=lambda text: log.say(text),
        )
        log_points = on_first(lambda: _begin_files(folder, config, facts, start))
        log = RunLog(
            folder,
            log_points=log_points,
            num_steps=num_steps,
            start=start,
            tensorboard=config.logging.tensorboard,
            pixels=(config.data.pixel_mean, config.data.pixel_std),
            silent=rank() > 0,
            extensions=[one.model_dump() for one in made],
        )
        stack.enter_context(contextlib.closing(log))
        for text in unsaid:
            log.say(f"[yellow]note[/yellow] {escape(text)}")
        if saved:
            log.say(f"continuing from {escape(str(saved.path))}: step {start} of {num_steps}")
            if len(made) > len(saved.state.get("extensions", [])):
                log.say(f"extended     {what_moved(saved, config, objective, made[-1])}")
            for key, value in kept.items():
                log.say(f"[yellow]note[/yellow] {key}: {escape(str(value))}, as the code had it when this run began")
            if lost := _lost_log_points(folder, saved, log_points):
                log.say(f"[yellow]note[/yellow] {escape(lost)}")
            for difference in checkpoint_files.compare_recipe(saved.state["recipe"], recipe):
                log.say(f"[yellow]note[/yellow] {escape(difference)}: the order continues exactly, the bits may not")
            if not same_signals:
                log.say(
                    "[yellow]note[/yellow] alarms take a new reference at the next log point: the saved one is of the "
                    "signals of a single micro-batch; signals are those of the global batch now"
                )
        elif resume:
            log.say(f"beginning at step 0 of {num_steps}: no checkpoint in {escape(str(folder))} yet")

        saver = Saver(
            folder / "checkpoints",
            objective,
            optimizer,
            keep=training.keep_checkpoints,
            keep_best=training.keep_best,
            timeout_s=training.ranks_timeout_s,
        )
        stack.enter_context(contextlib.closing(saver))

        def save(step: int, loaded: Loaded) -> None:
            whole = loaded.with_proof_of_all(gather(loaded.proof))
            state = {
                "config": config.model_dump(mode="json"),
                **({"init": began} if began else {}),
                "loader": loader.state_dict(whole),
                "alarms": alarms.state_dict(),
                "scaler": scaler.state_dict(),
                "recipe": recipe,
                "probe": probes.at(step),
                "log_points": log.log_points,
                "extensions": [one.model_dump() for one in made],
            }
            saver.save(step, state)

        came, stop_vote = stack.enter_context(interrupts()), StopVote()
        if device.type == "cuda" and world_size() > 1:
            stop_vote = StopVote(stack.enter_context(contextlib.closing(RankWatchdog())).watch)
        with reporting_full_memory(partial(smaller_steps, training, objective, device)):
            reached = fit(
                Learner(
                    objective=objective,
                    optimizer=optimizer,
                    scaler=scaler,
                    prepare=preparation(config, device),
                    autocast=autocast_of(training, device),
                    guard=NonfiniteGuard(
                        folder / _SKIPPED,
                        [entry.name for entry in loader.plan.entries],
                        log.say,
                        allowed=SCALES_TRIED if scaler.is_enabled() else 1,
                    ),
                    clip_norm=training.clip_norm,
                ),
                loader,
                schedule_of(config, num_steps, warmup),
                Hooks(
                    log=log,
                    alarms=alarms,
                    peak_images_per_s=images_per_s_at_peak(device, training.precision, objective.flops_per_image()),
                    probe=probes,
                    save=save,
                    stopping=lambda: stop_vote(came()) > 0,
                ),
                start=start,
                stop=stop,
            )
        saver.wait()
        if reached < num_steps:
            log.say(f"stopped after step {reached} of {num_steps}, saved; --resume auto continues")
        report = on_first(lambda: write_report(folder))
        told_to_leave = stop_vote.last and reached < stop
        if told_to_leave:
            log.say(f"report       {escape(str(report))}, {report.with_suffix('.html').name}")
    if told_to_leave:
        leave(stop_vote.last)


def objective_of(
    config: RunConfig,
    num_steps: int,
    where: str,
    device: torch.device,
    facts: Facts,
    fill: Callable[[Objective], None] = lambda objective: None,
) -> Objective:
    """What a run trains, on its device, laid out over its ranks.

    facts: of its mixture.
    fill: gives it, on rank 0, other weights than the drawn ones, while it is whole and on the CPU.
    """
    with reporting_full_memory(f"{device}: its memory is full with the weights alone; choose a smaller backbone"):
        _, objective = build_parts(config, num_steps, where, facts)
        fill(objective)
        objective.flops_per_image()  # counted now, for what is laid out cannot be
        share_weights(objective.to(device))
        lay_out(objective, config.training)
    return objective


def preparation(config: RunConfig, device: torch.device) -> Callable[[Loaded], list[Batch]]:
    """What makes a loaded batch this rank's micro-batches on the device."""
    micro_batch = micro_batch_of(config.training, world_size())
    return partial(to_micro_batches, config=config.data, micro_batch=micro_batch, seed=config.run.seed, device=device)


def autocast_of(training: TrainingConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The precision of matrix products, to be entered again each time."""
    return partial(torch.autocast, device.type, _HALVES[training.precision], enabled=training.precision != "fp32")


def schedule_of(config: RunConfig, num_steps: int, warmup: int) -> Schedule:
    """What moves with the steps of a run, and how often it looks on, saves and draws.

    config: with its recipe.  warmup: steps of it.
    """
    training = config.training
    lr, weight_decay = rates(training, num_steps=num_steps, warmup_steps=warmup)
    return Schedule(
        seed=config.run.seed,
        num_steps=num_steps,
        lr=lr,
        weight_decay=weight_decay,
        log_every=config.logging.every_steps,
        save_every=training.save_every_steps,
        draw_every=config.logging.every_steps * config.logging.images_every,
    )


def warmup_of(config: RunConfig, mixture: Mixture, num_steps: int) -> int:
    """Steps of the warm-up that a configuration says."""
    return schedules.warmup_steps(
        num_steps,
        config.training.warmup_epochs,
        epoch_samples=mixture.epoch_samples,
        global_batch=config.training.global_batch,
    )


def _checkpoint_to_resume(folder: Path, resume: str | None) -> Path | None:
    newest = checkpoint_files.latest(folder / "checkpoints")
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
            f"{folder}: holds checkpoints up to {newest.name}; continue with `--resume auto`, or choose another "
            "run.name"
        )
    return None


class _Recipe(BaseModel, strict=True):
    world_size: int = Field(ge=1, lt=2**31)


class _Alarms(BaseModel, strict=True):
    rule: Annotated[int, Field(ge=1, lt=2**31)] = 1
    reference: dict[str, float]
    in_a_row: dict[str, Annotated[int, Field(ge=0, lt=2**31)]]


class _State(BaseModel, strict=True):
    """What a run continues from besides its weights. Whatever else is in it is left alone."""

    config: dict[str, Any]
    init: dict[str, str | int] = {}
    """What the run began with, if not with drawn weights."""
    loader: dict[str, Any]
    recipe: _Recipe
    alarms: _Alarms
    scaler: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    log_points: int | None = Field(default=None, ge=0, lt=2**53)
    """None in a state from before they were counted."""
    extensions: list[Extension] = []


def _saved(path: Path) -> checkpoint_files.Checkpoint:
    """The checkpoint at `path`. CheckpointError where it is damaged, or its state not one that a run has written."""
    saved = checkpoint_files.load(path)
    try:
        _State.model_validate(saved.state)
    except ValidationError as error:
        raise checkpoint_files.damaged(path, f"state.json: {first_problem(error)}") from error
    return saved


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


def _begin_files(folder: Path, config: RunConfig, facts: Facts, start: int) -> int:
    """The run's folder as it was at step `start`. Returns the number of log points that are there."""
    for name in (METRICS_FILE, _SKIPPED):
        truncate_metrics(folder / name, start - 1)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG_FILE, text.encode())
    write_facts(folder, facts)
    return len(read_metrics(folder / METRICS_FILE)) if (folder / METRICS_FILE).exists() else 0


def _lost_log_points(folder: Path, saved: checkpoint_files.Checkpoint, found: int) -> str:
    """What is missing in a run's log, '' where nothing is. Training does not read it, so the run continues."""
    expected = saved.state.get("log_points")
    if found >= (1 if expected is None else expected):
        return ""
    return (
        f"{folder / METRICS_FILE}: {'log points' if expected is None else f'{expected:,} log points'} before step "
        f"{saved.step:,} expected, {found or 'none'} found; training continues exactly, but the report and its curves "
        "lack them: if there is a copy of the file, stop, put it back and resume again"
    )
