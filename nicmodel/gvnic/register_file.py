"""BAR 0 at work: what its registers show, what a driver has written there, and what that brings about.

The registers themselves are declared in `nicmodel.gvnic.registers`. Most writes take effect at once; the address of the
admin queue comes in parts, which are kept until the driver says that they are all there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.admin import AdminQueue
from nicmodel.gvnic.registers import DeviceStatus, DriverStatus
from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics

log = logging.getLogger(__name__)

#: Most characters that are kept of what a driver says of its version.
_MAX_VERSION = 128


class RegisterFile:
    """Registers of a NIC.

    Args:
        name: the NIC's, for logs.
        queues: maximum of receive queues, and of transmit queues.
        admin: the admin queue, which the driver sets up and rings here.
        work: has doorbells that came before take effect.
        deconfigure: has all DMA and all interrupts end.
        diagnostics: told when the admin queue goes.

    Attributes:
        status: what the device status register shows.
    """

    def __init__(
        self,
        name: str,
        queues: int,
        admin: AdminQueue,
        work: Callable[[], None],
        deconfigure: Callable[[], None],
        diagnostics: Diagnostics,
    ) -> None:
        self.status = DeviceStatus(0)
        self._name = name
        self._queues = queues
        self._admin = admin
        self._work = work
        self._deconfigure = deconfigure
        self._diagnostics = diagnostics
        self._written: dict[int, int] = {}
        self._version = ""

    def show(self, bit: DeviceStatus, on: bool) -> bool:
        """Set or clear a bit of the device status; whether that has changed it."""
        before = self.status
        self.status = before | bit if on else before & ~bit
        return self.status != before

    def read(self, offset: int, count: int) -> bytes:
        """Read BAR 0: what is no register, or is not readable, is 0."""
        image = bytearray(r.REGISTERS_SIZE)
        for register, value in (
            (r.DEVICE_STATUS, int(self.status)),
            (r.MAX_TX_QUEUES, self._queues),
            (r.MAX_RX_QUEUES, self._queues),
            (r.ADMINQ_PFN, self._value(r.ADMINQ_PFN)),
            (r.ADMINQ_EVENT_COUNTER, self._admin.counter),
        ):
            image[register.offset : register.offset + register.size] = value.to_bytes(register.size, "big")
        return bytes(image[offset : offset + count])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write BAR 0: each register that is written as a whole takes effect."""
        for register, value in r.decode(offset, data):
            if register.writable:
                self._write(register, value)

    def release(self) -> None:
        """The driver has let go: all DMA and all interrupts end before this returns."""
        was_there = self._admin.base != 0
        if was_there:
            with self._diagnostics.surviving("release"):
                self._diagnostics.tell_control(events.Releasing())
        self._deconfigure()
        self._admin.stop()
        self._written[r.ADMINQ_PFN.offset] = 0
        self.status &= ~(DeviceStatus.RESET | DeviceStatus.REPORT_STATS)
        self.status |= DeviceStatus.DEVICE_IS_RESET
        if was_there:
            with self._diagnostics.surviving("release"):
                self._diagnostics.tell_control(events.Released())

    def reset(self) -> None:
        """Registers as after power-on; what they had brought about has been ended by `release`."""
        self._written.clear()
        self.status &= ~DeviceStatus.DEVICE_IS_RESET

    def _value(self, register: r.Register) -> int:
        return self._written.get(register.offset, 0)

    def _write(self, register: r.Register, value: int) -> None:
        self._written[register.offset] = value
        if register is r.ADMINQ_DOORBELL:
            self._work()  # doorbells that came before the command take effect before it
            self._admin.ring(value)
        elif register is r.ADMINQ_PFN:
            if value:
                self._run(value * r.ADMINQ_PAGE, r.ADMINQ_PAGE, value)
            else:
                self.release()
        elif register is r.DRIVER_STATUS:
            if value & DriverStatus.RESET:
                self.release()
            elif value & DriverStatus.RUN:
                base = self._value(r.ADMINQ_BASE_HI) << 32 | self._value(r.ADMINQ_BASE_LO)
                # iPXE writes the page number besides, and takes it for a reset when it reads 0 later.
                self._run(base, self._value(r.ADMINQ_LENGTH), self._value(r.ADMINQ_PFN))
        elif register is r.DRIVER_VERSION:
            self._version = (self._version + chr(value))[-_MAX_VERSION:]
            if value == ord("\n"):
                log.info("%s: driver %s", self._name, self._version.strip())
                self._version = ""

    def _run(self, base: int, length: int, page: int) -> None:
        """The driver has given an admin queue; `page` is what its page number register reads while it runs."""
        self.release()
        self._written[r.ADMINQ_PFN.offset] = page
        self._admin.start(base, length)
        self.status &= ~DeviceStatus.DEVICE_IS_RESET
        log.info("%s: admin queue of %d bytes at %#x", self._name, length, base)
