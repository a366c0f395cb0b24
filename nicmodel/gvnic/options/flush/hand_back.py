"""Handing buffers back that were posted, so that the device does not touch them again."""

from __future__ import annotations

from nicmodel.gvnic.options.flush.declarations import RX_FLUSHED
from nicmodel.gvnic.options.owners.lists import NOTHING, exchange, reject_owned, sort
from nicmodel.gvnic.rings_dqo import reject
from nicmodel.gvnic.state import State
from nicmodel.jit.compiled import compiled, i64
from nicmodel.nic.state import distance

_FLUSHED = 1 << RX_FLUSHED.flushed.shift


@compiled
def hand_back(state: State, queue: int) -> None:
    """Hand the buffers of a queue back unused, and have none of them.

    Those of a ring that is out of reach are forgotten.
    """
    rx = state.rx[queue]
    reject(state, queue, i64(distance(rx.buffer_head, rx.buffer_tail, rx.positions)), _FLUSHED)
    rx.buffer_head = rx.buffer_tail


@compiled
def hand_back_owned(state: State, queue: int, owner: int) -> None:
    """As `hand_back`, of a queue with several owners: all buffers (`NOTHING`) or those of one owner."""
    rx = state.rx[queue]
    lookahead = i64(rx.lookahead)
    rx.lookahead = rx.buffer_entries
    sort(state, queue)
    rx.lookahead = lookahead
    rx.buffer_head = rx.buffer_tail
    for number in range(i64(rx.owners)):
        if owner in (NOTHING, number):
            exchange(state, queue, number)
            count = i64(distance(rx.buffer_head, rx.buffer_tail, rx.positions))
            reject_owned(state, queue, count, _FLUSHED)
            rx.buffer_head = rx.buffer_tail
            exchange(state, queue, number)
            rx.sorted -= count
