"""Delta debugging: the fewest of some things with which the same still happens.

Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28, 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fewer(items: Sequence[T], remains: Callable[[list[T]], bool], goes_on: Callable[[], bool]) -> list[T]:
    """Leave out ever smaller parts of `items`, as long as `remains` says that what matters is still there.

    Args:
        items: in their order.
        remains: tries some of them.
        goes_on: whether there are tries left.
    """
    left = list(items)
    size = max(1, len(left) // 2)
    while left and goes_on():
        start, left_out = 0, False
        while start < len(left) and goes_on():
            rest = left[:start] + left[start + size :]
            if remains(rest):
                left, left_out = rest, True
            else:
                start += size
        if size > 1:
            size //= 2
        elif not left_out:
            break
    return left
