"""The ranks of a run: how they meet, and sums over them, with gradients where a loss needs them.

In one process everything here does nothing.

A statistic of the global batch is a sum of per-rank moments: `all_reduce` makes it and sends the gradient of
every rank's loss back to every rank; `gather_rows` does so for rows of all ranks that meet each other. Each
rank then holds the gradient of the *sum* of the ranks' losses, and `average_gradients` turns it into that of
their mean, which is what a single process would have computed on the joined batch.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hjepa_shards.errors import InputError, ShardError
from hjepa_train.base import launcher

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Value = TypeVar("Value")

_LOST = re.compile("gloo|NCCL|Connection (closed|reset)|Broken pipe|[Tt]imed out")
_IN_USE = re.compile("EADDRINUSE|address already in use", re.IGNORECASE)


@contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[torch.device]:
    """Together with the other ranks that torchrun started, by its environment variables. Gives this rank's device.

    timeout_s: how long the ranks wait for each other. InputError where one does not come or is lost, where a variable
    is missing or wrong, and where the port at which they meet is in use.
    """
    started = launcher.num_started()
    device = _own(device)
    if _initialised() or started == 1:
        yield device
        return
    port = launcher.require_meeting_point()
    is_whole = False
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        yield device
        dist.barrier()  # none leaves while another may still ask it
        is_whole = True
    except RuntimeError as error:
        if not dist.is_initialized() and _IN_USE.search(str(error)):
            raise InputError(
                f"MASTER_PORT={port}: a free port of this machine expected, where the ranks meet; another program uses "
                "it, perhaps another run; end that, or choose another port (torchrun --master-port, or MASTER_PORT of "
                "all ranks)"
            ) from error
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        raise InputError(
            f"rank {launcher.rank_started()} of {started} lost the others, or did not meet them within "
            f"{timeout_s:.0f} s ({_first_sentence(error)}); look at what the others say, then continue with "
            "--resume auto"
        ) from error
    finally:
        if dist.is_initialized() and (is_whole or device.type != "cuda"):  # NCCL would wait for ranks that are lost
            dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that writes and speaks: rank 0, or one alone. Outside of `joined` too."""
    return dist.get_rank() == 0 if _initialised() else launcher.num_started() == 1 or launcher.rank_started() == 0


def rank() -> int:
    """This process's number in [0, world_size())."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """The number of processes that train together; 1 outside torchrun."""
    return dist.get_world_size() if _initialised() else 1


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of every rank's `tensor`; backward sums every rank's gradient."""
    return _Sum.apply(tensor) if world_size() > 1 else tensor  # pyright: ignore[reportReturnType]


def gather_rows(tensor: Tensor) -> Tensor:
    """Every rank's rows one after another, by rank, as many of each; backward sums every rank's gradient."""
    return _Rows.apply(tensor) if world_size() > 1 else tensor  # pyright: ignore[reportReturnType]


def gather(value: Value) -> list[Value]:
    """Every rank's `value`, by rank; anything that pickles."""
    gathered: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered


def on_first(work: Callable[[], Value]) -> Value:
    """What `work` gives on rank 0, on all ranks. An error of its that a user can fix ends all, and is reported once."""
    error: Exception | None = None
    shared: list[Any] = [None, False]
    if rank() == 0:
        try:
            shared = [work(), False]
        except (InputError, ShardError) as raised:
            error, shared = raised, [None, True]
    if world_size() > 1:
        dist.broadcast_object_list(shared, src=0)
    if error:
        raise error
    if shared[1]:
        raise SystemExit(2)
    return shared[0]


def on_all(work: Callable[[], Value]) -> Value:
    """What `work` gives on this rank, once it has succeeded on all.

    An error of its that a user can fix ends all ranks: those that had none say which rank had it, and what.
    """
    error: Exception | None = None
    value: Any = None
    try:
        value = work()
    except (InputError, ShardError) as raised:
        error = raised
    said = gather((str(error) or type(error).__name__) if error else None)
    if error:
        raise error
    for number, text in enumerate(said):
        if text is not None:
            raise InputError(f"rank {number}: {text}")
    return value


def on_the_side(timeout_s: float) -> dist.ProcessGroup:
    """All ranks once more, for what they send each other in threads of their own. All ranks call it together."""
    group = dist.new_group(timeout=timedelta(seconds=timeout_s), backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def mean_over_ranks(numbers: Mapping[str, float]) -> dict[str, float]:
    """Each number's mean over ranks, which all hold the same names."""
    gathered = gather(dict(numbers))
    return {name: sum(one[name] for one in gathered) / len(gathered) for name in numbers}


@final
class StopVote:
    """Whether a rank was told to stop: the largest of all ranks' numbers, known to all one call later. None waits."""

    def __init__(self, watch: Callable[[dist.Work], None] = lambda message: None) -> None:
        """watch: is given each message when it is sent."""
        self.last, self._watch = 0, watch
        self._sent: tuple[Tensor, Any] | None = None

    def __call__(self, mine: int) -> int:
        if world_size() == 1:
            self.last = mine
            return mine
        number = torch.tensor([mine])
        message = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True)
        assert message, "requested"
        self._watch(message)
        before, self._sent = self._sent, (number, message)
        if before:
            before[1].wait()
            self.last = int(before[0])
        return self.last


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks, one message per dtype. A missing gradient counts as zero.

    Shards of gradients are means already (FSDP2).
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad and not is_shard(parameter):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def is_shard(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether each rank holds a part of it. By a method's name: to import the type takes seconds."""
    return hasattr(tensor, "to_local")


def as_laid_out(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that it holds whole, where `like` is sharded over ranks; else all of it."""
    if not is_shard(like):
        return whole
    from torch.distributed.tensor import distribute_tensor  # only here: seconds

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        rows = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(rows, tensor.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def _own(device: torch.device) -> torch.device:
    """This rank's own GPU, where the run is on GPUs."""
    if device.type == "mps" and launcher.num_started() > 1:
        raise InputError(
            "torchrun: one process expected on MPS, which has no way to add over several; or `device: cpu`"
        )
    if device.type != "cuda":
        return device
    number, found = launcher.local_rank(), torch.cuda.device_count()
    if number >= found:
        raise InputError(f"torchrun: at most {found} processes expected on this machine, one a GPU; {number + 1} found")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _first_sentence(error: Exception) -> str:
    """Without the location in C++ that begins it."""
    return re.sub(r"^\[.*?\] ", "", str(error)).partition("\n")[0].partition(". ")[0].strip()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
