"""SIGINT and SIGTERM while training: noted, and obeyed between two steps. Whole runs: test_resume.py."""

import signal
import threading
from pathlib import Path

import pytest
import torch

from bp_torch.distributed import World
from bp_torch.training import Stopped
from bp_torch.training.interruption import POLL_EVERY, Signals
from tests.harness import SIGNALS, posix

CPU = torch.device("cpu")


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_exit_code_is_128_plus_the_number_of_the_signal(number: signal.Signals, code: int) -> None:
    stopped = Stopped(number, Path("runs/one"))
    assert stopped.code == code
    way = f"continue with: bp-torch train --resume {Path('runs/one')}"
    assert str(stopped) == f"stopped by {number.name}, all is saved; {way}"


def test_first_signal_is_noted_and_the_second_interrupts() -> None:
    with Signals() as signals:
        assert not signals.should_stop(1)
        signal.raise_signal(signal.SIGINT)
        assert signals.should_stop(1) and signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_first_ctrl_c_says_what_a_second_one_does(capfd: pytest.CaptureFixture[str]) -> None:
    with Signals():
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "\nstopping; again to stop at once\n"


@posix
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_hangup_has_no_effect(number: signal.Signals) -> None:
    with Signals() as signals:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == number


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_that_nohup_or_a_script_ignores_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(number)
            assert not signals.received and signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Signals():
        during = [signal.getsignal(number) for number in SIGNALS]
    assert all(one != other for one, other in zip(before, during, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_thread_that_may_not_handle_signals_trains_without() -> None:
    asked: list[bool] = []

    def work() -> None:
        with Signals() as signals:
            asked.append(signals.should_stop(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


def test_several_processes_ask_each_other_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "any", lambda world, flag, device: True)  # another one has received a signal
    signals = Signals(World(0, 2))
    asked = [poll for poll in range(1, 3 * POLL_EVERY) if signals.should_stop(poll)]
    assert asked == [POLL_EVERY, 2 * POLL_EVERY]
