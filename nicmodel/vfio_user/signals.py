"""Signals as events of the loop.

Python calls a signal's handler between two instructions of its own, so a signal that comes just before the loop goes to
sleep waits there until something else wakes it, for ever perhaps; and a handler that raises does so in the middle of
whatever is being done. Here nothing is done in handlers. The interpreter writes the signal's number to a socket
(``signal.set_wakeup_fd``), which wakes the loop, and the loop calls back.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from .poll import EventLoop


class Signals:
    """Context manager: has the loop call back for signals. To be used in the main thread, by one at a time.

    However often a signal comes until the loop gets to it, it is called back for once. One that comes after the context
    was entered and before the loop runs is not lost.

    Args:
        poller: The loop.
        actions: What to call, by the signal's number.
    """

    def __init__(self, poller: EventLoop, actions: Mapping[signal.Signals, Callable[[], object]]) -> None:
        self._poller = poller
        self._actions = dict(actions)
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._read_end, self._write_end = socket.socketpair()
        for end in (self._read_end, self._write_end):
            end.setblocking(False)
        # A full socket has more than enough to tell.
        self._wakeup_before = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        self._poller.add(self._read_end.fileno(), self._come)
        for number in self._actions:
            self._before[number] = signal.signal(number, _nothing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup_before)
        self._poller.remove(self._read_end.fileno())
        self._read_end.close()
        self._write_end.close()

    def _come(self) -> None:
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = self._read_end.recv(1 << 16)
        # Also those of other handlers come here, such as a window's change of size.
        for number, action in self._actions.items():
            if number in numbers:
                action()


def _nothing(number: int, frame: object) -> None:
    """The handler of each signal: without one, the interpreter writes nothing."""
