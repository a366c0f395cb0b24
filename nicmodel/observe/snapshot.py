"""A NIC's state and counters at one moment, as plain data: for reports, JSON and tests."""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.state import COUNTERS, SETTINGS
from nicmodel.nic.state import Drop, Purpose
from nicmodel.packet.match import FlowType

#: Version of the dictionary's form; grows when a field changes its meaning or goes away.
VERSION = 2


def snapshot(nic: Nic, protocol: Mapping[str, int] | None = None) -> dict[str, Any]:
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
    queues = nic.profile.queues
    rules = state.rules
    info = nic.admin.driver_info
    return {
        "version": VERSION,
        "name": nic.name,
        "mac": nic.profile.mac.hex(":"),
        "client": nic.link.name if nic.link else None,
        "driver": None
        if info is None
        else {
            "os_type": int(info["os_type"]),
            "version": ".".join(str(info[f"driver_{part}"]) for part in ("major", "minor", "sub")),
            "os_version": info["os_version"].decode("latin1"),
            "os_build": info["os_build"].decode("latin1"),
        },
        "link_up": nic.link_up,
        "device_status": int(nic.registers.status),
        "rx_queues": [
            _queue(state.rx[queue], queue, state.drops[queue], state.ledger[queue], kinds)
            | _placement(nic, queue)
            | _owners(nic, queue)
            for queue in range(queues)
        ],
        "tx_queues": [
            _queue(state.tx[queue], queue, state.drops[queues + queue], state.ledger[queues + queue], kinds)
            for queue in range(queues)
        ],
        "delivered": nic.ingress.delivered,
        "drops": _drops(state.drops.sum(axis=0)),
        "device_drops": _drops(state.drops[-1]),
        "dma": _ledger(state.ledger.sum(axis=0), kinds),
        "device_dma": _ledger(state.ledger[-1], kinds),
        "below_switch": sorted(nic.below_switch),
        "dma_faults": int(state.device["faults"][0]),
        "interrupts": state.vectors["fires"].tolist(),
        "vectors": {name: state.vectors[name].tolist() for name in ("enabled", "pending", "interval", "last_fire")},
        "rules": [
            {
                "location": int(location),
                "flow_type": FlowType(rules[location]["flow_type"]).name,
                "queue": int(rules[location]["action"]),
                "hits": int(rules[location]["hits"]),
            }
            for location in nic.rules.locations()
        ],
        "ddp": dict(nic.ddp.counters) if nic.ddp.capacity else {},
        "events": dict(nic.counters),
        "admin": dict(nic.admin.executed),
        "wire": {"name": nic.wire.name, **nic.wire.counters},
        "vfio_user": dict(protocol or {}),
        "own_memory": _own_memory(),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _own_memory() -> int:
    """Bytes of this process's memory that it shares with nobody: neither files nor the guest's memory."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _queue(record: np.void, number: int, drops: np.ndarray, ledger: np.ndarray, kinds: list[str]) -> dict[str, Any]:
    fields = [*SETTINGS[record.dtype], *COUNTERS[record.dtype]]
    return {
        "queue": number,
        **{name: int(record[name]) for name in fields},
        "drops": _drops(drops),
        "dma": _ledger(ledger, kinds),
    }


def _placement(nic: Nic, queue: int) -> dict[str, Any]:
    """What a receive queue has kept on a NIC with deferred placement, and what became of it."""
    if nic.deferred is None:
        return {}
    record = nic.state.placement_rings[queue]
    return {"placement": {name: int(record[name]) for name in ("pages", "budget", *COUNTERS[record.dtype])}}


def _owners(nic: Nic, queue: int) -> dict[str, Any]:
    """What came to each owner of a receive queue's buffers, how many of them are there, how many frames wait."""
    rx = nic.state.rx[queue]
    owners = nic.state.owners[queue, : int(rx["owners"])]
    return (
        {}
        if not len(owners)
        else {
            "by_owner": [
                {"buffers": int(owner["tail"] - owner["head"]) % int(rx["buffer_entries"]), "held": int(owner["held"])}
                | {name: int(owner[name]) for name in COUNTERS[owners.dtype]}
                for owner in owners
            ]
        }
    )


def _drops(row: np.ndarray) -> dict[str, int]:
    return {reason.name.lower(): int(row[reason]) for reason in Drop if reason > Drop.HELD and row[reason]}


def _ledger(table: np.ndarray, kinds: list[str]) -> dict[str, dict[str, int]]:
    """Bytes by purpose and kind, without the zeros."""
    return {
        purpose.name.lower(): {kind: int(count) for kind, count in zip(kinds, table[purpose], strict=False) if count}
        for purpose in Purpose
        if table[purpose].any()
    }
