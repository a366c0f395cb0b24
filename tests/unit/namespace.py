"""A network namespace for one test.

It belongs to one thread and to the descriptors opened in it, so it is gone with them, however a test ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import pytest

CLONE_NEWNET = 0x40000000

P = ParamSpec("P")
T = TypeVar("T")


class Namespace:
    """Runs functions in a thread that has a network namespace to itself."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.run(self._unshare)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.submit(function, *args, **kwargs).result()

    def ip(self, *words: str) -> str:
        return self.run(subprocess.check_output, ["ip", *words], text=True)

    def close(self) -> None:
        self._thread.shutdown()

    @staticmethod
    def _unshare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_namespace() -> Iterator[Namespace]:
    """What a fixture yields; without the right to have one, the test is skipped."""
    try:
        namespace = Namespace()
    except OSError as error:
        pytest.skip(f"no network namespace of one's own: {error}")
    yield namespace
    namespace.close()
