"""`NicServer`, the server as a process: it does not outlive the one that started it, and serves each NIC by itself."""

import os
import select
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from nicmodel.gvnic.commands import Opcode, Status
from nicmodel.gvnic.registers import (
    ADMINQ_BASE_LO,
    ADMINQ_DOORBELL,
    ADMINQ_LENGTH,
    ADMINQ_PAGE,
    DRIVER_STATUS,
    Bar,
    DeviceStatus,
    DriverStatus,
    Register,
)
from nicmodel.gvnic.testing.adminq import encode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.pci.config import COMMAND, Command
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user import Client
from nicmodel.vfio_user.protocol import PciRegion
from nicmodel.vm.server import NicServer


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """*Steps*: a process starts a server, and kills itself. *Verify*: the server ends."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from nicmodel.vm.server import NicServer\n"
        "server = NicServer(folder=Path(sys.argv[1])); server.start(); print(server.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdin and starter.stdout
        server = os.pidfd_open(int(starter.stdout.readline()))
        assert select.select([server], [], [], 0) == ([], [], [])
        starter.stdin.close()
        starter.wait()
    assert select.select([server], [], [], 60)[0], "the server still runs"
    os.close(server)


def test_a_client_that_is_waited_for_keeps_no_other_waiting() -> None:
    """*Steps*: have a NIC fetch a command from memory that only messages reach, and do not answer before another NIC of
    the same server has answered its own client. *Verify*: the command is executed.

    Were the other one kept waiting, it would answer after the time-out only, and the command be lost. A machine that
    stands still for that long looks the same: hence some attempts.
    """
    ring, speed = 0x10000, 0x20000
    memory = bytearray(0x30000)

    def access(address: int, count: int, data: bytes | None) -> bytes | None:
        if data is None:
            return bytes(memory[address : address + count])
        memory[address : address + count] = data
        return None

    def write(client: Client, register: Register, value: int) -> None:
        data = value.to_bytes(register.size, "big")
        client.region_write(Bar.REGISTERS, register.offset, data, posted=True)

    def executed(server: NicServer) -> bool:
        memory[ring : ring + 64] = encode_command(Opcode.REPORT_LINK_SPEED, address=speed)
        with Client(str(server.sockets[0])) as silent, Client(str(server.sockets[1])) as other:
            silent.dma_map(0, len(memory))
            silent.region_write(PciRegion.CONFIG, COMMAND, Command.BUS_MASTER.to_bytes(2, "little"))
            for register, value in (
                (ADMINQ_LENGTH, ADMINQ_PAGE),
                (ADMINQ_BASE_LO, ring),
                (DRIVER_STATUS, DriverStatus.RUN),
            ):
                write(silent, register, value)
            silent.device_info()
            write(silent, ADMINQ_DOORBELL, 1)
            other.device_info()
            silent.serve_dma(access)
            while silent.process(1):
                pass
        return int.from_bytes(memory[ring + 4 : ring + 8], "big") == Status.PASSED

    with NicServer(["--wire", "none", "--wire", "none"], sockets=2) as server:
        assert any(executed(server) for _ in range(5))
        assert server.report()[0]["vfio_user"]["dma_read"] > 0


def test_it_takes_more_descriptors_than_processes_may_open_unless_they_ask() -> None:
    """*Steps*: a server that may open few files unless it asks for more gets the vectors of four NICs, 17 each.
    *Verify*: no client loses its connection, and each has an answer.
    """
    few = ("sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh")
    with NicServer(["--wire", "none"] * 4, sockets=4, prefix=few) as server, ExitStack() as stack:
        for path in server.sockets:
            driver = stack.enter_context(Driver(str(path), ram=GuestMemory("ram", size=128 << 20)))
            driver.probe()
            driver.open()
            assert len(driver.eventfds) == 17
            assert driver.device_status() & DeviceStatus.LINK_UP
        assert [nic["client"] is not None for nic in server.report()] == [True] * 4


def test_only_the_first_start_loads_the_compiler(tmp_path: Path) -> None:
    """*Steps*: start a server, which fills the cache if need be, and another. *Verify*: that one has no LLVM loaded."""
    for _ in range(2):
        with NicServer(folder=tmp_path) as server:
            loaded = Path(f"/proc/{server.pid}/maps").read_text()
    assert "_multiarray_umath" in loaded
    assert "llvmlite" not in loaded
