"""Several processors for the first start: Numba compiles on one, and not in several threads (it has a global lock)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

from nicmodel.jit.cache import CACHE
from nicmodel.jit.compiled import JIT_DISABLED, before_compiling, watching

Step = Callable[[], object]

#: Processes that help, at most: each compiles anew what its functions have in common with others'.
_MOST_HELPERS = 3
_PR_SET_PDEATHSIG = 1  # Linux, include/uapi/linux/prctl.h


def side_by_side(*steps: Step) -> None:
    """Run steps that compile functions, one after the other.

    As soon as one has something to compile, other processes run those behind it, and leave the machine code in the
    cache, where this process finds it, or waits for what is being made (`nicmodel.jit.cache.kept`). A helper that fails
    is no loss: what it has not left is compiled here.

    Args:
        steps: the one that compiles most first. What else they do counts in this process only.
    """
    following = list(steps)
    with contextlib.ExitStack() as stack:
        if _can_be_helped():
            before_compiling.append(lambda: stack.enter_context(_helpers(following)))
            stack.callback(before_compiling.clear)
        while following:
            following.pop(0)()


def _can_be_helped() -> bool:
    """A process of several threads is not to be forked: what others of them do is not finished in the copy."""
    is_alone = threading.active_count() == 1
    return not JIT_DISABLED and CACHE is not None and is_alone and len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def _helpers(steps: Sequence[Step]) -> Iterator[None]:
    """Processes that run the steps; they end with the context, whatever they have done by then."""
    number = min(len(steps), len(os.sched_getaffinity(0)) - 1, _MOST_HELPERS)
    helpers: list[int] = []
    try:
        for first in range(number):
            with contextlib.suppress(OSError), warnings.catch_warnings():
                # Python 3.12 warns of threads, such as those that wait in numpy for large matrices: none of them has
                # anything that compiling needs.
                warnings.simplefilter("ignore", DeprecationWarning)
                if helper := os.fork():
                    helpers.append(helper)
                else:
                    _help(steps[first::number])
        yield
    finally:
        for helper in helpers:
            os.kill(helper, signal.SIGKILL)
            os.waitpid(helper, 0)


def _help(steps: Sequence[Step]) -> None:
    """What a helper does: it compiles, says nothing, and does not outlive the process that it is for."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        watching.clear()
        for step in steps:
            step()
    finally:
        os._exit(0)
