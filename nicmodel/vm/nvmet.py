"""An NVMe/TCP target in a guest: Linux' nvmet, with one namespace, which is a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest
from nicmodel.vm.needs import Need

NVMET = (
    Need("NVME_TARGET", "the NVMe target", "nvmet"),
    Need("NVME_TARGET_TCP", "its transport", "nvmet_tcp"),
)  # fmt: skip
"""What a kernel needs to be a target."""

_FILE = "/tmp/nvmet-disk"
_TIMEOUT = 120

_START = """
set -e
modprobe nvmet_tcp
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
python3 -c 'import random; open("{file}", "wb").write(random.Random({seed}).randbytes({size}))'
cd /sys/kernel/config/nvmet
mkdir subsystems/{name} subsystems/{name}/namespaces/1 ports/1
echo 1 > subsystems/{name}/attr_allow_any_host
cd subsystems/{name}/namespaces/1
echo -n {file} > device_path
echo 1 > buffered_io
echo 1 > enable
cd /sys/kernel/config/nvmet/ports/1
echo tcp > addr_trtype
echo ipv4 > addr_adrfam
echo {address} > addr_traddr
echo {port} > addr_trsvcid
ln -s ../../subsystems/{name} subsystems/
"""
_STOP = """
cd /sys/kernel/config/nvmet 2>/dev/null || exit 0
rm -f ports/1/subsystems/*
rmdir ports/1 subsystems/{name}/namespaces/1 subsystems/{name}
rm -f {file}
"""
#: SHA-256 of each block, in the order of the file.
_DIGESTS = """
import hashlib
with open("{file}", "rb") as disk:
    while block := disk.read({block}):
        print(hashlib.sha256(block).hexdigest())
"""
_DAMAGE = """
import os
disk = os.open("{file}", os.O_RDWR)
for place in {places}:
    os.pwrite(disk, bytes([os.pread(disk, 1, place)[0] ^ 1]), place)
"""


@dataclass(frozen=True)
class NvmeTarget:
    """A target that is there.

    Attributes:
        guest: where it is.
        address: where it listens, a port of the guest's.
        block: bytes of a block. nvmet takes it from the file system, which is tmpfs: a page.
        port: where it listens.
        seed: of its first content, ``random.Random(seed).randbytes(size)``.
        size: bytes of its namespace.
        subsystem: its qualified name.
    """

    guest: Guest
    address: str
    block: int
    port: int = 4420
    seed: int = 6
    size: int = 4 << 20
    subsystem: str = "nqn.2014-08.org.example:disk"

    @contextmanager
    def running(self) -> Iterator[NvmeTarget]:
        """Have the guest be the target meanwhile.

        Raises:
            VmError: it cannot.
        """
        words = {
            "file": _FILE, "seed": self.seed, "size": self.size, "name": self.subsystem, "address": self.address,
            "port": self.port,
        }  # fmt: skip
        self.guest.run(_START.format(**words), timeout=_TIMEOUT)
        try:
            yield self
        finally:
            self.guest.run(_STOP.format(**words), timeout=_TIMEOUT)

    def digests(self) -> list[str]:
        """SHA-256 of each block as the guest itself finds it in the file, hexadecimal.

        Raises:
            VmError: the guest does not say.
        """
        program = _DIGESTS.format(file=_FILE, block=self.block)
        found = self.guest.run(["python3", "-c", program], timeout=_TIMEOUT).stdout.split()
        if len(found) != self.size // self.block:
            raise VmError(f"the target's file has {len(found)} blocks, {self.size // self.block} were expected")
        return found

    def damage(self, *places: int) -> None:
        """Change bytes of the file behind the target's back, for a test to see that this is noticed."""
        self.guest.run(["python3", "-c", _DAMAGE.format(file=_FILE, places=places)], timeout=_TIMEOUT)
