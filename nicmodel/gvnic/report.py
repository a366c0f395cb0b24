"""What a gVNIC tells of itself besides what every NIC does: in a snapshot, and in all its detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import OptionId
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.state import COUNTERS, SETTINGS
from nicmodel.nic.layout import explain
from nicmodel.nic.plain import flag_names, flow_rule
from nicmodel.packet.match import FlowType

if TYPE_CHECKING:
    from nicmodel.gvnic.device import Nic  # which makes the reports

#: Fields of a queue's record that mean something to this process only.
_OWN = ("active", "pages", "positions")


def queue(nic: Nic, way: Literal["rx", "tx"], number: int) -> dict[str, Any]:
    """A queue's settings and counters; what a receive queue has kept on the NIC, what came to each owner of buffers."""
    record = (nic.state.rx if way == "rx" else nic.state.tx)[number]
    fields = {name: int(record[name]) for name in (*SETTINGS[record.dtype], *COUNTERS[record.dtype])}
    return fields if way == "tx" else fields | _placement(nic, number) | _owners(nic, number)


def report(nic: Nic) -> dict[str, Any]:
    """Who the driver is, the status that it reads, the flow rules with their hits, data placed, commands executed."""
    info, rules = nic.admin.driver_info, nic.state.rules
    return {
        "driver": None
        if info is None
        else {
            "os_type": int(info["os_type"]),
            "version": ".".join(str(info[f"driver_{part}"]) for part in ("major", "minor", "sub")),
            "os_version": info["os_version"].decode("latin1"),
            "os_build": info["os_build"].decode("latin1"),
        },
        "device_status": int(nic.registers.status),
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
        "admin": dict(nic.admin.executed),
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


def detail(nic: Nic) -> dict[str, Any]:
    """Registers, what DESCRIBE_DEVICE offers, the admin queue, the driver, the queues that exist, RSS and rules."""
    state, info = nic.state, nic.admin.driver_info
    descriptor, options = _described(nic)
    return {
        "registers": _registers(nic),
        "bars": [nic.config.bar(bar) for bar in Bar],
        "descriptor": descriptor,
        "options": options,
        "admin_queue": {"address": nic.admin.base, "slots": nic.admin.slots, "completed": nic.admin.counter},
        "queue_format": nic.queue_format.name,
        "driver": None if info is None else explain(info),
        "queues": {
            f"{way}{number}": {name: int(queues[number][name]) for name in SETTINGS[queues.dtype] if name not in _OWN}
            for way, queues in (("rx", state.rx), ("tx", state.tx))
            for number in np.flatnonzero(queues["active"])
        },
        "rss": {
            "hash_types": flag_names(nic.rss.types),
            "key": nic.rss.key.hex(),
            "table": nic.rss.table.tolist(),
            "set_by": "driver" if nic.rss.configured else "device",
        },
        "rules": [flow_rule(location, state.rules[location]) for location in nic.rules.locations()],
    }


def _registers(nic: Nic) -> dict[str, Any]:
    image = nic.registers.read(0, r.REGISTERS_SIZE)
    values: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    for one in r.REGISTERS.values():
        if one.readable:
            value = values[one.name] = int.from_bytes(image[one.offset : one.offset + one.size], "big")
            if one.flags is not None:
                flags[f"{one.name}_flags"] = flag_names(one.flags(value))
    return values | flags


def _described(nic: Nic) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    raw = nic.profile.describe()
    descriptor = np.frombuffer(raw, c.DEVICE_DESCRIPTOR, 1)[0]
    options = {}
    place = c.DEVICE_DESCRIPTOR.itemsize
    for _ in range(int(descriptor["num_device_options"])):
        header = np.frombuffer(raw, c.OPTION_HEADER, 1, place)[0]
        place += c.OPTION_HEADER.itemsize
        option = OptionId(int(header["id"]))
        options[option.name] = explain(np.frombuffer(raw, option.option.payload, 1, place)[0])
        place += int(header["length"])
    return explain(descriptor), options
