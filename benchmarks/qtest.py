"""QEMU without a guest: registers are read and written by commands at a socket (QEMU, docs/devel/testing/qtest.rst).

What QEMU takes for an access is then all that is in a figure: no virtual CPU runs, by KVM or otherwise.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from testbed import cpu_seconds

from nicmodel.gvnic.registers import Bar
from nicmodel.pci.config import COMMAND, Command
from nicmodel.vm.qemu import find_qemu, spawn

#: Where the NIC is plugged in, and where its BARs are put: 16 MiB apart.
_SLOT, _BARS, _APART = 5, 0xE0000000, 24
#: An address of ordinary memory, and bytes of that.
_MEMORY, _SIZE = 0x100000, "64M"
#: Ports by which the configuration space is reached (PCI Local Bus 3.0, 3.2.2.3.2), and where the BARs are in it.
_CONFIG_ADDRESS, _CONFIG_DATA, _FIRST_BAR = 0xCF8, 0xCFC, 0x10
#: Commands that are under way at a time.
_TOGETHER = 32
_TIMEOUT = 30.0


class QtestQemu:
    """A QEMU with a NIC, whose BARs are mapped; use it as a context manager.

    Args:
        nic: the NIC's socket.

    Attributes:
        pid: its process.
    """

    def __init__(self, nic: Path) -> None:
        self._nic = nic

    def __enter__(self) -> Self:
        qemu = find_qemu()
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = f"{folder}/qtest.sock"
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(_TIMEOUT)
            device = {
                "driver": "vfio-user-pci", "rombar": 0, "addr": str(_SLOT),
                "socket": {"type": "unix", "path": str(self._nic)},
            }  # fmt: skip
            self._process = spawn(
                [
                    *qemu.command, "-accel", "qtest", "-qtest", f"unix:{path}", "-qtest-log", "none",
                    "-machine", "q35,memory-backend=ram", "-m", _SIZE, "-display", "none", "-nodefaults",
                    "-object", f"memory-backend-memfd,id=ram,size={_SIZE},share=on", "-device", json.dumps(device),
                ],
                qemu.environment,
            )  # fmt: skip
            try:
                self._socket = listener.accept()[0]
            except TimeoutError:
                self._process.kill()
                raise click.ClickException("QEMU does not start without a guest (-accel qtest)") from None
        self._socket.settimeout(_TIMEOUT)
        self._lines = self._socket.makefile("rb")
        self.pid = self._process.pid
        for number in range(3):
            self._write_config(_FIRST_BAR + 4 * number, _BARS + (number << _APART))
        self._write_config(COMMAND, Command.MEMORY | Command.BUS_MASTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._socket.close()

    def ask(self, *commands: str) -> list[str]:
        """Give commands; what QEMU answers to each.

        Raises:
            ClickException: it refuses one.
        """
        self._socket.sendall("".join(f"{command}\n" for command in commands).encode())
        answers = [self._lines.readline().decode().rstrip() for _ in commands]
        for command, answer in zip(commands, answers, strict=True):
            if not answer.startswith("OK"):
                raise click.ClickException(f"QEMU answers {answer!r} to {command}")
        return answers

    def _write_config(self, register: int, value: int) -> None:
        self.ask(
            f"outl {_CONFIG_ADDRESS:#x} {1 << 31 | _SLOT << 11 | register:#x}", f"outl {_CONFIG_DATA:#x} {value:#x}"
        )  # fmt: skip

    def write(self, bar: Bar, offset: int, count: int, *, alone: bool = False) -> float:
        """CPU time of QEMU's for a write to a BAR, s: beyond that of one to memory. `alone`: each out of rest."""
        return self._each(f"writel {self._address(bar, offset):#x} 0", count, alone) - self._each(
            f"writel {_MEMORY:#x} 0", count, alone
        )  # fmt: skip

    def read(self, bar: Bar, offset: int, count: int) -> float:
        """CPU time of QEMU's for a read, which waits for its answer; otherwise as `write`."""
        return self._each(f"readl {self._address(bar, offset):#x}", count, True) - self._each(
            f"readl {_MEMORY:#x}", count, True
        )  # fmt: skip

    @staticmethod
    def _address(bar: Bar, offset: int) -> int:
        return _BARS + (bar << _APART) + offset

    def _each(self, command: str, count: int, alone: bool) -> float:
        together = 1 if alone else _TOGETHER
        before = cpu_seconds(self.pid)
        for _ in range(count // together):
            self.ask(*[command] * together)
            if alone:
                time.sleep(1e-4)
        return (cpu_seconds(self.pid) - before) / (count // together * together)
