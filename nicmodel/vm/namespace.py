"""A network namespace of this process's own.

It belongs to one thread and to the descriptors and processes that come from it, so it is gone with them, however this
process ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from nicmodel.vm.host import find_program, program

CLONE_NEWNET = 0x40000000

P = ParamSpec("P")
T = TypeVar("T")


class Namespace:
    """Runs functions in a thread that has a network namespace to itself; also a context manager.

    Raises:
        OSError: this user may have none.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "namespace")
        self.run(self._unshare)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function there; processes that it starts stay there."""
        return self._thread.submit(function, *args, **kwargs).result()

    def ip(self, *words: str) -> str:
        """What the command ip prints there."""
        return self.run(subprocess.check_output, [program("ip"), *words], text=True)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command that is to run there, whichever thread starts it."""
        thread = self.run(threading.get_native_id)
        return program("nsenter"), f"--net=/proc/{os.getpid()}/task/{thread}/ns/net", "--"

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    @staticmethod
    def _unshare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def namespace_for_taps() -> Namespace | None:
    """A namespace in which a tap can be made and set up; None if this user may not, or the program ip is missing."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK) or not find_program("ip"):
        return None
    try:
        return Namespace()
    except OSError:
        return None
