"""Where in the guest's PCI topology memory lies, from what QEMU says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nicmodel.client.ledger import Place

#: A PCI device as QEMU describes it, and the bridges above it, from the root port down, by their place in the answer.
_Found = tuple[Mapping[str, Any], tuple[int, ...]]


def places(pci: Sequence[Mapping[str, Any]], nic: Mapping[str, Any]) -> dict[str, Place]:
    """What the kinds of memory of a NIC's guest are, by name.

    Memory that lies in a BAR is told by its address, so this works where the NIC sees guest-physical addresses: without
    an IOMMU. With one, which also has peer-to-peer DMA redirected to the root complex, nothing is found to be a BAR.

    Args:
        pci: what QMP's ``query-pci`` returns.
        nic: `nicmodel.observe.detail` of the NIC; of it the BARs and the memory count.
    """
    found = list(devices(pci))
    bars: set[Any] = set(filter(None, nic["bars"]))
    ours = next((above for device, above in found if bars & {bar["address"] for bar in device["regions"]}), ())
    result: dict[str, Place] = {}
    for region in nic["memory"]:
        if not region["mapped"]:  # has no file, and so no name of its own
            continue
        owner = next((above for device, above in found if _holds(device["regions"], region)), None)
        if owner is not None:
            result[region["kind"]] = Place.PEER if _share_a_switch(ours, owner) else Place.BAR
        else:
            result.setdefault(region["kind"], Place.RAM if region["kind"] == "ram" else Place.NODE)
    return result


def devices(buses: Iterable[Mapping[str, Any]], above: tuple[int, ...] = ()) -> Iterator[_Found]:
    """All functions on these buses, of QMP's ``query-pci``, and on those behind their bridges."""
    for bus in buses:
        for device in bus.get("devices", ()):
            yield device, above
            if bridge := device.get("pci_bridge"):
                yield from devices([bridge], (*above, id(device)))


def _holds(bars: Iterable[Mapping[str, Any]], region: Mapping[str, Any]) -> bool:
    start, end = region["address"], region["address"] + region["size"]
    return any(
        bar["type"] == "memory" and bar["address"] <= start and end <= bar["address"] + bar["size"] for bar in bars
    )


def _share_a_switch(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two devices are below one switch: the first bridge is the root port, the second the upstream port."""
    return len(one) > 1 and one[:2] == other[:2]
