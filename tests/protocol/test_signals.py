"""Signals as events of the loop: none is lost, whenever it comes, and none interrupts what is being done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from nicmodel.vfio_user import Poller, Signals


@pytest.fixture
def poller() -> Iterator[Poller]:
    created = Poller()
    yield created
    created.close()


def test_each_is_called_back_for(poller: Poller) -> None:
    seen: list[str] = []
    before = signal.getsignal(signal.SIGUSR1)
    actions = {signal.SIGUSR1: lambda: seen.append("one"), signal.SIGUSR2: lambda: seen.append("two")}
    with Signals(poller, actions):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert not seen  # not before the loop gets to it
        poller.run_once(5)
        assert seen == ["two"]
        for _ in range(10_000):  # more than the socket holds
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        while poller.run_once(0):
            pass
        assert set(seen[1:]) == {"one", "two"} or seen[1:] == ["one"]
        seen.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        poller.run_once(5)
        assert seen == ["one"]
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_one_that_comes_before_the_loop_runs_ends_it(poller: Poller) -> None:
    with Signals(poller, {signal.SIGTERM: poller.stop}):
        os.kill(os.getpid(), signal.SIGTERM)
        poller.serve_forever()


def test_a_failing_action_does_not_end_the_loop(poller: Poller, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with Signals(poller, {signal.SIGUSR1: fail, signal.SIGTERM: poller.stop}):
        os.kill(os.getpid(), signal.SIGUSR1)
        poller.run_once(5)
        os.kill(os.getpid(), signal.SIGTERM)
        poller.serve_forever()
    assert "No space left" in caplog.text


_SERVER = """
import os, signal, sys
from nicmodel.vfio_user import Poller, Signals
poller = Poller()
with Signals(poller, {signal.SIGTERM: poller.stop, signal.SIGUSR1: lambda: None}):
    os.write(1, b"ready")
    poller.serve_forever()
"""


def test_one_that_comes_between_ready_and_the_first_wait(poller: Poller) -> None:
    """Steps: 40 processes get SIGUSR1 and SIGTERM at the moment they say that they are ready.
    Verify: each ends, with status 0.
    """
    for batch in range(4):
        processes = [
            subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) for _ in range(10)
        ]  # fmt: skip
        try:
            for number, process in enumerate(processes):
                assert process.stdout is not None
                assert os.read(process.stdout.fileno(), 5) == b"ready"
                if number % 2:
                    process.send_signal(signal.SIGUSR1)
                time.sleep(0.0001 * batch)
                process.send_signal(signal.SIGTERM)
            assert [process.wait(30) for process in processes] == [0] * len(processes)
        finally:
            for process in processes:
                process.kill()
                process.communicate()
