"""Of two ranks one is lost; the other, whose host gets no message, ends anyway. Its GPU is a call that sleeps."""

import multiprocessing
import os
import signal
import time
from contextlib import closing, redirect_stderr
from pathlib import Path

import pytest
import torch.distributed as dist

from hjepa_train.base.distributed import StopVote
from hjepa_train.parallel.rank_watchdog import RankWatchdog


def rank_main(number: int, folder: str, receives: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    with (
        Path(folder, f"{number}.txt").open("w", buffering=1) as said,
        redirect_stderr(said),
        closing(RankWatchdog(grace_s=1)) as lookout,
    ):
        agreed = StopVote(lookout.watch)
        assert [agreed(0), agreed(number)] == [0, 0]
        if number == 1:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        assert agreed(0) == 1
        if not receives:
            time.sleep(60)
        with pytest.raises(RuntimeError):
            agreed(0)
    time.sleep(3)  # longer than the grace
    os._exit(7)


@pytest.mark.parametrize(("receives", "code"), [(False, 2), (True, 7)])
def test_a_host_that_receives_no_message_is_ended_and_one_that_does_ends_itself(
    tmp_path: Path, receives: bool, code: int
) -> None:
    forking = multiprocessing.get_context("forkserver")
    ranks = [forking.Process(target=rank_main, args=(number, str(tmp_path), receives)) for number in (0, 1)]
    for one in ranks:
        one.start()
    began = time.monotonic()
    for one in ranks:
        one.join(timeout=50)
    codes = [one.exitcode for one in ranks]
    for one in ranks:
        one.kill()
    assert time.monotonic() - began < 45
    assert codes == [code, -signal.SIGKILL]
    said = (tmp_path / "0.txt").read_text()
    assert ("error: rank 0 of 2 lost another one while it waited for its device (" in said) != receives
