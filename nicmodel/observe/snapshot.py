"""A NIC's state and counters at one moment, as plain data: for reports, JSON and tests."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.nic.view import View
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.vfio_user.server import Server

#: Version of the dictionary's form; grows when a field changes its meaning or goes away.
VERSION = 2


def one_a_turn(
    nics: Sequence[tuple[View, Server]],
    poller: EventLoop,
    wanted: Callable[[], bool],
    done: Callable[[list[dict[str, Any]]], object],
    failed: Callable[[Exception], object],
) -> None:
    """Make the snapshots of NICs, one in each turn of the loop, or packets would wait for all of them.

    Args:
        nics: each with its vfio-user server.
        poller: the loop.
        wanted: asked before each; if it says no, that is all.
        done: gets the snapshots.
        failed: gets what was raised instead of one; it is called while that is handled.
    """
    found: list[dict[str, Any]] = []

    def go_on() -> None:
        if not wanted():
            return
        try:
            nic, server = nics[len(found)]
            found.append(snapshot(nic, server.stats))
        except Exception as error:
            failed(error)
            return
        if len(found) < len(nics):
            poller.next_turn(go_on)
        else:
            done(found)

    if nics:
        go_on()
    else:
        done(found)


def snapshot(nic: View, protocol: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All that is known of a NIC.

    Args:
        nic: the device.
        protocol: counters of its vfio-user server.

    Returns:
        JSON-ready: identity and link; per queue its settings, counters, ``drops`` by name and ``dma`` bytes by purpose
        and kind of memory (`nicmodel.client.ledger` adds direction and path); the same for the device as a whole, and
        what of it belongs to no queue; flow rules with hits; admin commands by name and status; wire and server
        counters; ``delivered``, the frames from the wire that ended in a queue, alone or merged with others, while all
        others are among the ``drops`` or ``held`` for buffers; ``ddp``, what direct data placement counts;
        memory of this process in bytes: ``own_memory``, what it has for itself now, and ``peak_memory``, which includes
        what it has touched of the guest's memory. Counters run since the server's start, ``dma`` since the client
        connected.
    """
    state, kinds = nic.state, nic.dma.kinds
    return {
        "version": VERSION,
        "name": nic.name,
        "mac": nic.profile.mac.hex(":"),
        "client": nic.link.name if nic.link else None,
        "link_up": nic.link_up,
        "rx_queues": [_queue(nic, "rx", queue) for queue in range(len(state.rx))],
        "tx_queues": [_queue(nic, "tx", queue) for queue in range(len(state.tx))],
        "delivered": nic.ingress.delivered,
        "drops": _drops(state.drops.sum(axis=0)),
        "device_drops": _drops(state.drops[-1]),
        "dma": _ledger(state.ledger.sum(axis=0), kinds),
        "device_dma": _ledger(state.ledger[-1], kinds),
        "below_switch": sorted(nic.below_switch),
        "dma_faults": int(state.device["faults"][0]),
        "interrupts": state.vectors["fires"].tolist(),
        "vectors": {name: state.vectors[name].tolist() for name in ("enabled", "pending", "interval", "last_fire")},
        "events": dict(nic.counters),
        **nic.report(),
        "wire": {"name": nic.wire.name, **nic.wire.counters},
        "vfio_user": dict(protocol or {}),
        "own_memory": _own_memory(),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _own_memory() -> int:
    """Bytes of this process's memory that it shares with nobody: neither files nor the guest's memory."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _queue(nic: View, way: Literal["rx", "tx"], number: int) -> dict[str, Any]:
    row = number if way == "rx" else len(nic.state.rx) + number
    return {
        "queue": number,
        **nic.queue(way, number),
        "drops": _drops(nic.state.drops[row]),
        "dma": _ledger(nic.state.ledger[row], nic.dma.kinds),
    }


def _drops(row: NDArray[Any]) -> dict[str, int]:
    return {reason.name.lower(): int(row[reason]) for reason in Drop if reason > Drop.HELD and row[reason]}


def _ledger(table: NDArray[Any], kinds: list[str]) -> dict[str, dict[str, int]]:
    """Bytes by purpose and kind, without the zeros."""
    return {
        purpose.name.lower(): {kind: int(count) for kind, count in zip(kinds, table[purpose], strict=False) if count}
        for purpose in Purpose
        if table[purpose].any()
    }
