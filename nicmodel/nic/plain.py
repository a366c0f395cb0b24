"""What the core knows, as plain data: where a frame went, which queue a vector serves, rights and flags by name."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np

from nicmodel.nic.state import Drop, Records, State
from nicmodel.packet.match import FlowType
from nicmodel.vfio_user.dma import READABLE, WRITABLE


def where(state: State, outcome: np.void) -> dict[str, Any]:
    """Where a received frame went and why, from its `OUTCOME`.

    Returns:
        ``verdict`` (`Drop` by name, ``delivered`` or ``held``); once it was steered ``queue``, the flow ``rule``'s
        location or else the ``table_entry`` that the ``hash`` chose; the bytes that went to the ``header`` buffer.
    """
    verdict = Drop(int(outcome["verdict"]))
    fields: dict[str, Any] = {"verdict": "delivered" if verdict == Drop.NONE else verdict.name.lower()}
    if outcome["queue"] >= 0:
        fields["queue"] = f"rx{outcome['queue']}"
        fields["hash"] = int(outcome["hash"])
        if outcome["rule"] >= 0:
            fields["rule"] = int(outcome["rule"])
        else:
            fields["table_entry"] = int(outcome["hash"]) % int(state.device["lut_size"][0])
        fields["header"] = max(0, int(outcome["header"]))
    return fields


def followers(outcomes: Records) -> set[int]:
    """Numbers of the frames that were coalesced with one before them."""
    return {int(number) for number in outcomes["next"] if number >= 0}


def served(state: State, vector: int) -> str | None:
    """The queue that a queues' vector serves, such as ``rx3``; the first, if a driver has several share one."""
    for way, queues in (("rx", state.rx), ("tx", state.tx)):
        found = np.flatnonzero((queues["active"] != 0) & (queues["vector"] == vector))
        if len(found):
            return f"{way}{found[0]}"
    return None


def rights(flags: int) -> str:
    """``rw``, ``r-``, ``-w`` or ``--``."""
    return ("r" if flags & READABLE else "-") + ("w" if flags & WRITABLE else "-")


def flag_names(flags: Any) -> list[str]:
    """Names of the bits that are set, in lower case; a bit without a name as a number."""
    return [name.lower() for name in flags.name.split("|")] if flags.name else ([f"{int(flags):#x}"] if flags else [])


def name_of(enumeration: Any, value: int) -> str:
    """The name of a number in an enumeration, or the number."""
    try:
        return str(enumeration(value).name)
    except ValueError:
        return f"{value:#x}"


def flow_rule(location: int, rule: np.void) -> dict[str, Any]:
    """A flow rule; of what it may match only what its masks ask for."""
    flow_type = FlowType(int(rule["flow_type"]))
    width = 4 if flow_type < FlowType.TCPV6 else 16
    matched: dict[str, Any] = {}
    for name in ("source", "destination"):
        mask = bytes(rule[f"{name}_mask"][:width])
        if any(mask):
            address = str(ipaddress.ip_address(bytes(rule[name][:width])))
            whole = mask == b"\xff" * width
            matched[name] = address if whole else f"{address}/{ipaddress.ip_address(mask)}"
    for name, ones in (("source_port", 0xFFFF), ("destination_port", 0xFFFF), ("spi", 0xFFFFFFFF), ("tos", 0xFF)):
        mask_bits = int(rule[f"{name}_mask"])
        if mask_bits:
            matched[name] = int(rule[name]) if mask_bits == ones else f"{int(rule[name]):#x}/{mask_bits:#x}"
    return {
        "location": location,
        "flow_type": flow_type.name,
        "match": matched,
        "queue": int(rule["action"]),
        "hits": int(rule["hits"]),
    }
