"""The two BARs a gVNIC driver works with: registers (big-endian) and doorbells."""

from __future__ import annotations

from nicmodel.gvnic.registers import Bar, Register
from nicmodel.vfio_user.client import Client


class Registers:
    """BAR 0 by register. Writes are posted, as QEMU posts them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, register: Register) -> int:
        """Read a register; a read waits until the device has seen every earlier write."""
        return int.from_bytes(self._client.region_read(Bar.REGISTERS, register.offset, register.size), "big")

    def write(self, register: Register, value: int) -> None:
        """Write a register."""
        data = value.to_bytes(register.size, "big")
        self._client.region_write(Bar.REGISTERS, register.offset, data, posted=True)


class Doorbells:
    """BAR 2 by doorbell index: what the device wrote to `irq_doorbell_address` and to a queue's resources."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def ring(self, index: int, value: int) -> None:
        """Write one doorbell of a DQO format (little-endian)."""
        self._client.region_write(Bar.DOORBELLS, 4 * index, value.to_bytes(4, "little"), posted=True)
