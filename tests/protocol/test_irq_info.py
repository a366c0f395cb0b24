"""DEVICE_GET_IRQ_INFO: how many vectors there are of each type."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client, Command, PciIrq
from nicmodel.vfio_user.protocol import IRQ_INFO, IrqFlag

from .conftest import Lab


@pytest.mark.parametrize(
    ("index", "count", "flags"),
    [
        (PciIrq.INTX, 1, IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED),
        (PciIrq.MSI, 0, IrqFlag.EVENTFD),
        # Without NORESIZE QEMU enables MSI-X vectors one by one, as the guest comes to use them.
        (PciIrq.MSIX, 32, IrqFlag.EVENTFD),
        (PciIrq.ERR, 1, IrqFlag.EVENTFD),
        (PciIrq.REQ, 1, IrqFlag.EVENTFD),
    ],
)
def test_types(lab: Lab, client: Client, index: int, count: int, flags: int) -> None:
    info = client.irq_info(index)
    assert (info.index, info.count, info.flags) == (index, count, flags)
    assert lab.link.irqs[index].count == count


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        IRQ_INFO.pack(16, 0, 0, 0)[:-1],
        IRQ_INFO.pack(15, 0, 0, 0),
        IRQ_INFO.pack(16, 0, 5, 0),
        IRQ_INFO.pack(16, 0, 0xFFFFFFFF, 0),
    ],
)
def test_malformed_requests(client: Client, payload: bytes) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.DEVICE_GET_IRQ_INFO, payload)
    assert refused.value.errno == errno.EINVAL
