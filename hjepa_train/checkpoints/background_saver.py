"""A run's memory, kept and restored: weights, AdamW's moments, and where it was.

They are copied to the host and written in a thread while training continues. Where they are sharded over ranks (FSDP2),
each rank writes its part (sharded_files.py): tensors by name, the objective's state_dict() and each parameter's
moments. A run continues from either kind, on any number of ranks, sharded or not.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hjepa_train.base.distributed import as_laid_out, is_shard, on_first, on_the_side, rank
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.objectives.base import Objective

_Named = dict[str, Any]
_MOMENTS = ("exp_avg", "exp_avg_sq")


@final
class Saver:
    """Writes the checkpoints of a run. All ranks call it together; `close` it."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        keep: int,
        keep_best: str | None = None,
        timeout_s: float = 600,
    ) -> None:
        """keep: the number of newest that stay.  keep_best: by which probe one more does.  timeout_s: for ranks."""
        self._folder, self._objective, self._optimizer = folder, objective, optimizer
        self._kept: _Named = {"keep": keep, "keep_best": keep_best}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path | None] | None = None
        self._among = on_the_side(timeout_s) if any(map(is_shard, objective.parameters())) else None

    def save(self, step: int, state: _Named) -> None:
        """Keep what is there now as the checkpoint of this step. CheckpointError if the one before was not written."""
        self.wait()
        if self._among:
            self._save_sharded(step, state, self._among)
        elif rank() == 0:
            model, optimizer = (_on_host(part.state_dict()) for part in (self._objective, self._optimizer))
            self._writing = self._thread.submit(
                checkpoint_files.save, self._folder, step, model=model, optimizer=optimizer, state=state, **self._kept
            )

    def wait(self) -> None:
        """Until what was saved last is on disk. CheckpointError, on all ranks, if it is not."""
        writing, self._writing = self._writing, None
        if writing:
            wait([writing])  # by each rank for itself: none begins the next before it has done with this one
        on_first(lambda: writing and writing.result())

    def close(self) -> None:
        """What is being written is finished; by each rank for itself, whatever the others do."""
        self._thread.shutdown()

    def _save_sharded(self, step: int, state: _Named, among: dist.ProcessGroup) -> None:
        from hjepa_train.checkpoints import sharded_files  # only here: seconds

        tensors = {"model": self._objective.state_dict(), "optimizer": _moments(self._objective, self._optimizer)}
        needed = checkpoint_files.num_bytes(tensors)

        def begin() -> Path:
            with checkpoint_files.reporting_disk_errors(self._folder, step, needed):
                return checkpoint_files.begin(self._folder, step)

        writing = sharded_files.write(tensors, on_first(begin), among)

        def finish() -> Path | None:
            if rank() > 0:
                return sharded_files.written(writing)
            with checkpoint_files.reporting_disk_errors(self._folder, step, needed):
                sharded_files.written(writing)
                return checkpoint_files.finish(self._folder, step, state=state, **self._kept)

        self._writing = self._thread.submit(finish)


def restore(
    saved: checkpoint_files.Checkpoint, objective: Objective, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put what was saved into an objective, and its optimizer.

    ResumeMismatch where it is of another model, CheckpointError where it is damaged.
    """
    if not checkpoint_files.is_sharded(saved.path):
        checkpoint_files.restore_model(objective, saved.model, saved.path)
        if optimizer:
            optimizer.load_state_dict(_as_laid_out(saved, optimizer))
        return
    from hjepa_train.checkpoints import sharded_files  # only here: seconds

    weights = objective.state_dict()
    checkpoint_files.refuse_other_model(weights, sharded_files.shapes(saved.path, "model"), saved.path)
    tensors: _Named = {"model": weights}
    if optimizer:
        tensors["optimizer"] = _moments(objective, optimizer)
    sharded_files.read(tensors, saved.path)
    objective.load_state_dict(weights)
    if optimizer:
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                optimizer.state[parameter] = tensors["optimizer"][name]


def _on_host(state: _Named) -> _Named:
    """A copy that training does not touch."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)


def _moments(objective: Objective, optimizer: torch.optim.Optimizer) -> _Named:
    """AdamW's numbers of each trained parameter, by its name; zeros before its first step."""
    return {
        name: dict(optimizer.state[parameter])
        if parameter in optimizer.state
        else {
            "step": torch.zeros((), device=parameter.device),
            **{moment: torch.zeros_like(parameter, requires_grad=False) for moment in _MOMENTS},
        }
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad
    }


def _as_laid_out(saved: checkpoint_files.Checkpoint, optimizer: torch.optim.Optimizer) -> _Named:
    """An optimizer's state_dict() with moments laid out as the parameters are. CheckpointError where it is not one.

    Its settings are this run's, which are the same: another recipe was refused.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state, ours = saved.optimizer.get("state"), optimizer.state_dict()["param_groups"]
    if not isinstance(state, dict):
        raise checkpoint_files.damaged(saved.path, "its optimizer has no state")
    moved: dict[int, _Named] = {}
    for number, numbers in state.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(numbers, dict):
            raise checkpoint_files.damaged(saved.path, "its optimizer is that of other parameters")
        shape = parameters[number].shape
        for key, value in numbers.items():
            wanted = shape if key in _MOMENTS else torch.Size() if key == "step" else None
            if not isinstance(value, Tensor) or value.shape != wanted:
                raise checkpoint_files.damaged(
                    saved.path, f"its optimizer has no {str(key)[:40]} of parameter {number}"
                )
        moved[number] = {
            key: as_laid_out(value, parameters[number]) if key in _MOMENTS else value for key, value in numbers.items()
        }
    return {"state": moved, "param_groups": ours}
