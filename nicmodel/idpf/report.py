"""What an idpf tells of itself besides what every NIC does: in a snapshot, and in all its detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nicmodel.idpf import registers as r
from nicmodel.idpf.registers import Bar
from nicmodel.idpf.state import COUNTERS, SETTINGS
from nicmodel.nic.layout import explain
from nicmodel.nic.plain import flag_names, flow_rule
from nicmodel.packet.match import FlowType

if TYPE_CHECKING:
    from nicmodel.idpf.device import Nic  # which makes the reports

#: Fields of a queue's record that mean something to this process only.
_OWN = ("active", "positions")
#: Those of the second buffer queue.
_RING = ("buffer_ring", "buffer_entries", "buffer_head", "buffer_tail", "buffer_size")


def queue(nic: Nic, way: Literal["rx", "tx"], number: int) -> dict[str, Any]:
    """A queue's settings and counters; of a receive queue also those of its second buffer queue."""
    record = (nic.state.rx if way == "rx" else nic.state.tx)[number]
    fields: dict[str, Any] = {name: int(record[name]) for name in (*SETTINGS[record.dtype], *COUNTERS[record.dtype])}
    if way == "rx":
        fields["small"] = {name: int(nic.state.small[number][name]) for name in _RING}
    return fields


def report(nic: Nic) -> dict[str, Any]:
    """The state of the vport, the flow rules with their hits, messages executed."""
    rules = nic.state.rules
    return {
        "driver": None,  # no message says who it is
        "vport": {"created": nic.control.vport, "enabled": nic.control.up},
        "filters": {"addresses": nic.filters.addresses, "promiscuous": flag_names(nic.filters.mode)},
        "loopback": nic.port.loop is not None,
        "reset_state": nic.registers.state.name,
        "rules": [
            {
                "location": int(location),
                "flow_type": FlowType(rules[location]["flow_type"]).name,
                "queue": int(rules[location]["action"]),
                "hits": int(rules[location]["hits"]),
            }
            for location in nic.rules.locations()
        ],
        "ddp": {},
        "admin": dict(nic.mailbox.counts),
    }


def detail(nic: Nic) -> dict[str, Any]:
    """Registers, the mailbox, the vport, the queues that exist, RSS, rules."""
    state = nic.state
    return {
        "registers": {
            one.name: int.from_bytes(nic.registers.read(one.offset, r.SPACING), "little")
            for one in r.REGISTERS.values()
            if one.count == 1
        },
        "bars": {str(int(bar)): nic.config.bar(bar) for bar in Bar},
        "queue_format": "split",
        "mailbox": {
            f"{name}_{key}": value
            for name, ring in (("to_device", nic.mailbox.to_device), ("to_driver", nic.mailbox.to_driver))
            for key, value in (
                ("address", ring.base),
                ("entries", ring.entries),
                ("head", ring.head),
                ("tail", ring.tail),
            )
        },
        "vport": {"created": nic.control.vport, "enabled": nic.control.up, "addresses": nic.filters.addresses},
        "queues": {
            f"{way}{number}": {name: int(queues[number][name]) for name in SETTINGS[queues.dtype] if name not in _OWN}
            for way, queues in (("rx", state.rx), ("tx", state.tx))
            for number in np.flatnonzero(queues["active"]).tolist()
        },
        "small_buffer_queues": {
            f"rx{number}": {name: int(state.small[number][name]) for name in _RING}
            for number in np.flatnonzero(state.small["buffer_entries"]).tolist()
        },
        "completion_queues": {
            str(number): explain(state.completion_queues[number])
            for number in np.flatnonzero(state.completion_queues["active"]).tolist()
        },
        "rss": {
            "hash_types": flag_names(nic.rss.hash_types),
            "key": nic.rss.key.hex(),
            "table": nic.rss.table.tolist(),
            "set_by": "driver" if nic.rss.configured else "device",
        },
        "rules": [flow_rule(location, state.rules[location]) for location in nic.rules.locations()],
    }
