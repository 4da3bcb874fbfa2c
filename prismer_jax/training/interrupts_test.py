"""Signals are noted while a loop runs, and belong to whoever had them before when it ends."""

import contextlib
import os
import signal
import threading

import pytest

from prismer_jax.training.interrupts import Interrupts


@pytest.mark.parametrize("number", Interrupts.SIGNALS)
def test_the_first_signal_is_noted_and_the_second_raises(number, capfd):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert not interrupts.asked
        os.kill(os.getpid(), number)
        assert interrupts.asked
        os.kill(os.getpid(), number)  # the same once more, as `timeout` passes on what its group gets, too
        interrupts.AGAIN = 0.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert "once more stops at once" in capfd.readouterr().err


def test_handlers_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ValueError), Interrupts():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_takes_no_signals():
    before, during = signal.getsignal(signal.SIGINT), []

    def loop():
        with Interrupts():
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert during == [before]
