"""Interrupt moderation.

A vector masks itself when it fires and is re-enabled by its doorbell; an event while it is masked stays pending. The
driver does not look again after re-enabling, so what is pending must fire then. At most one interrupt per interval; a
vector may have two of them, and fires for whichever of its pending causes has waited long enough (`Cause`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled
from nicmodel.nic.state import Cause, Records

#: `moderate` found no vector that has to be looked at later.
NEVER = np.iinfo(np.int64).max

_SECOND = int(Cause.SECOND)
_AT_ONCE = int(Cause.AT_ONCE)


@compiled
def is_awaited(vectors: Records) -> bool:
    """Whether there is a vector that is to fire, now or later; one that is masked waits for its doorbell."""
    for number in range(len(vectors)):
        vector = vectors[number]
        if vector.pending != 0 and vector.enabled != 0:
            return True
    return False


@compiled
def moderate(vectors: Records, now: int, fired: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Decide which vectors fire at `now` (ns on the device's clock).

    Args:
        vectors: the vectors' state (`VECTOR`).
        now: the time.
        fired: filled with the numbers of the vectors to signal; as long as `vectors`.

    Returns:
        How many entries of `fired` are valid, and when to call again (`NEVER` if no vector waits for its interval).
    """
    count = 0
    again = NEVER
    for number in range(len(vectors)):
        vector = vectors[number]
        if vector.pending == 0 or vector.enabled == 0:
            continue
        wait = vector.interval
        if vector.pending >= _SECOND:  # not the first cause alone
            if vector.pending >= _AT_ONCE:
                wait = 0
            elif vector.pending == _SECOND:
                wait = vector.second_interval
            else:
                wait = min(wait, vector.second_interval)
        due = vector.last_fire + wait
        if now >= due:
            vector.pending = 0
            vector.enabled = 0
            vector.last_fire = now
            vector.fires += 1
            fired[count] = number
            count += 1
        else:
            again = min(again, due)
    return count, again
