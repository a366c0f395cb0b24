"""All that a NIC holds at one moment: what a bring-up engineer asks for when the counters are not enough."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import OptionId
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.layout import explain
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.state import SETTINGS
from nicmodel.nic.state import Records
from nicmodel.observe.trace import flag_names, rights
from nicmodel.packet.match import FlowType
from nicmodel.vfio_user.protocol import PciIrq

#: Regions of each kind of memory that are listed.
_MAX_REGIONS = 512

#: Fields of a queue's record that mean something to this process only.
_OWN = ("active", "pages", "position_mask")


def detail(nic: Nic) -> dict[str, Any]:
    """The state of a NIC, JSON-ready.

    Returns:
        ``registers`` (BAR 0 as the driver reads it), the PCI command register and the addresses of the BARs; the
        ``descriptor`` and ``options`` that DESCRIBE_DEVICE offers; the ``admin_queue``; the ``queue_format`` that the
        driver has chosen and what the ``driver`` says of itself; the ``queues`` that exist, by name, with rings,
        indices and generations; notification ``blocks``; ``rss``; flow ``rules`` with what they match and how often
        they did; ``memory``, the guest's, as it is mapped, of each kind the first `_MAX_REGIONS` of the
        ``memory_regions``. Addresses are guest addresses.
    """
    state = nic.state
    regions = state.memory_map.flat()
    descriptor, options = _described(nic)
    info = nic.admin.driver_info
    return {
        "name": nic.name,
        "registers": _registers(nic),
        "pci_command": flag_names(nic.config.command),
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
        "blocks": [_block(nic, number) for number in range(nic.interrupts.blocks)],
        "rss": {
            "hash_types": flag_names(nic.rss.hash_types),
            "key": nic.rss.key.hex(),
            "table": state.lut.tolist(),
            "set_by": "driver" if nic.rss.configured else "device",
        },
        "rules": [_rule(location, state.rules[location]) for location in nic.rules.locations()],
        "memory": [_region(nic, region) for region in _some_of_each_kind(regions)],
        "memory_regions": len(regions),
    }


def _some_of_each_kind(regions: Records) -> Records:
    """The memory map, of each kind no more than is listed: a guest may map pages by the hundred thousand."""
    kinds = regions["kind"]
    chosen = [np.flatnonzero(kinds == kind)[:_MAX_REGIONS] for kind in np.unique(kinds)]
    return regions[np.sort(np.concatenate(chosen))] if chosen else regions


def _region(nic: Nic, region: np.void) -> dict[str, Any]:
    return {
        "address": int(region["start"]),
        "size": int(region["size"]),
        "rights": rights(int(region["flags"])),
        "kind": nic.dma.kinds[region["kind"]] if region["kind"] < len(nic.dma.kinds) else "other",
        "mapped": bool(region["host"]),
    }


def _registers(nic: Nic) -> dict[str, Any]:
    image = nic.region_read(Bar.REGISTERS, 0, r.REGISTERS_SIZE)
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


def _block(nic: Nic, number: int) -> dict[str, Any]:
    record = nic.state.vectors[number]
    vector = nic.interrupts.base + number
    return {
        "vector": vector,
        "enabled": bool(record["enabled"]),
        "pending": bool(record["pending"]),
        "interval_ns": int(record["interval"]),
        "fires": int(record["fires"]),
        "eventfd": nic.link is not None and nic.link.irqs[PciIrq.MSIX].configured(vector),
    }


def _rule(location: int, rule: np.void) -> dict[str, Any]:
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
