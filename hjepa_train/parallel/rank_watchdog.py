"""A rank that was lost while the others wait for their GPUs: that is reported, and they end, long before NCCL gives up.

A host that waits for its GPU receives no message, and the GPU waits, in a sum over ranks, for one that is gone. What
ranks send each other over gloo after each step breaks at once where a process is lost, and a thread listens to that.
"""

import os
import threading
from queue import SimpleQueue
from typing import final

import torch.distributed as dist

from hjepa_shards.base.terminal import say_error
from hjepa_train.base.distributed import rank, world_size


@final
class RankWatchdog:
    """The listener. `close` it."""

    def __init__(self, grace_s: float = 10) -> None:
        """grace_s: for the host to find out by itself, and to end in good order."""
        self._messages: SimpleQueue[dist.Work | None] = SimpleQueue()
        self._grace_s, self._closed = grace_s, threading.Event()
        threading.Thread(target=self._listen, name="lookout", daemon=True).start()

    def watch(self, message: dist.Work) -> None:
        """A message under way between all ranks."""
        self._messages.put(message)

    def close(self) -> None:
        """The host goes its own way."""
        self._closed.set()
        self._messages.put(None)

    def _listen(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                message.wait()
            except RuntimeError as error:
                if not self._closed.wait(self._grace_s):
                    say_error(
                        f"error: rank {rank()} of {world_size()} lost another one while it waited for its device "
                        f"({str(error).partition('. ')[0]}); look at what the others say, then continue "
                        "with --resume auto"
                    )
                    os._exit(2)  # nothing that is gentler reaches a host in a call that does not come back
                return
