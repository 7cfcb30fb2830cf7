"""Signals ask a run to stop, and it leaves with the exit code that shells have for them."""

import os
import signal

import pytest

from hjepa_train.base.stop_signals import interrupts, leave


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_is_received_once_and_says_how_to_leave(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with interrupts() as came:
        assert came() == 0
        os.kill(os.getpid(), number)
        assert came() == number
        assert signal.getsignal(number) == before, "a second one ends the process at once"
    assert signal.getsignal(number) == before
    with pytest.raises(SystemExit) as left:
        leave(came())
    assert left.value.code == code


def test_ctrl_c_leaves_as_ctrl_c() -> None:
    with interrupts() as came:
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        leave(came())


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came() == 0
    finally:
        signal.signal(signal.SIGINT, before)
