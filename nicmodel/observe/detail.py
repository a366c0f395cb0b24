"""All that a NIC holds at one moment: what a bring-up engineer asks for when the counters are not enough."""

from __future__ import annotations

from typing import Any

import numpy as np

from nicmodel.nic.plain import flag_names, rights
from nicmodel.nic.state import Records
from nicmodel.nic.view import View
from nicmodel.vfio_user.protocol import PciIrq

#: Regions of each kind of memory that are listed.
_MAX_REGIONS = 512


def detail(nic: View) -> dict[str, Any]:
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
    return {
        "name": nic.name,
        "pci_command": flag_names(nic.config.command),
        **nic.detail(),
        "blocks": [_block(nic, number) for number in range(nic.interrupts.count)],
        "memory": [_region(nic, region) for region in _some_of_each_kind(regions)],
        "memory_regions": len(regions),
    }


def _some_of_each_kind(regions: Records) -> Records:
    """The memory map, of each kind no more than is listed: a guest may map pages by the hundred thousand."""
    kinds = regions["kind"]
    chosen = [np.flatnonzero(kinds == kind)[:_MAX_REGIONS] for kind in np.unique(kinds)]
    return regions[np.sort(np.concatenate(chosen))] if chosen else regions


def _region(nic: View, region: np.void) -> dict[str, Any]:
    return {
        "address": int(region["start"]),
        "size": int(region["size"]),
        "rights": rights(int(region["flags"])),
        "kind": nic.dma.kinds[region["kind"]] if region["kind"] < len(nic.dma.kinds) else "other",
        "mapped": bool(region["host"]),
    }


def _block(nic: View, number: int) -> dict[str, Any]:
    record = nic.state.vectors[number]
    vector = nic.interrupts.first + number
    return {
        "vector": vector,
        "enabled": bool(record["enabled"]),
        "pending": bool(record["pending"]),
        "interval_ns": int(record["interval"]),
        "fires": int(record["fires"]),
        "eventfd": nic.link is not None and nic.link.irqs[PciIrq.MSIX].configured(vector),
    }
