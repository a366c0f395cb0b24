"""The architectures of guests: this host's own, and arm64, whose CPUs QEMU emulates."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nicmodel.nearest import did_you_mean
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import HOST_ARCHITECTURE, Packages


@dataclass(frozen=True)
class Arch:
    """An architecture, and what a guest of it is made with.

    Attributes:
        name: As Debian and users call it.
        machine: As `uname -m` and QEMU call it.
        source: Its folder below arch/ in the kernel's source.
        image: What `make` builds a kernel to, below that folder.
        layouts: The machines, keys of `nicmodel.vm.layout.LAYOUTS`; the first is the usual one.
        slow_if_emulated: Features that an emulated CPU is to lack, since QEMU is slow at them.
        qemu: The Debian package with QEMU for it.
        qemu_variable: The environment variable that names a QEMU for it.
    """

    name: str
    machine: str
    source: str
    image: str
    layouts: tuple[str, ...]
    slow_if_emulated: str
    qemu: str
    qemu_variable: str

    @property
    def triplet(self) -> str:
        """As compilers call it, and as Debian's folders of libraries are called."""
        return f"{self.machine}-linux-gnu"

    @property
    def qemu_program(self) -> str:
        """QEMU's program."""
        return f"qemu-system-{self.machine}"

    @property
    def is_hosts(self) -> bool:
        """Whether it is this host's own: KVM runs no other."""
        return self.name == HOST_ARCHITECTURE

    @cached_property
    def qemu_packages(self) -> Packages:
        """The first Debian packages of QEMU with `vfio-user-pci` (QEMU 10.1)."""
        return Packages("qemu" if self.is_hosts else f"qemu-{self.name}", (self.qemu,), suite="trixie-backports")


AMD64 = Arch(
    name="amd64",
    machine="x86_64",
    source="x86",
    image="boot/bzImage",
    layouts=("q35", "two-nics", "switch", "iommu"),
    # QEMU executes "rep movsb" and its like byte by byte. A kernel that finds these features copies and clears memory
    # that way; one that does not, in words, which is twice as fast.
    slow_if_emulated=",-erms,-fsrm,-fzrm,-fsrs,-fsrc",
    qemu="qemu-system-x86",
    qemu_variable="NICMODEL_QEMU",
)
ARM64 = Arch(
    name="arm64",
    machine="aarch64",
    source="arm64",
    image="boot/Image",
    layouts=("virt",),
    # Signatures of return addresses: each call and each return would compute one, a fifth of all that a boot does.
    slow_if_emulated=",pauth=off",
    qemu="qemu-system-arm",
    qemu_variable="NICMODEL_QEMU_ARM64",
)
ARCHES: Mapping[str, Arch] = {arch.name: arch for arch in (AMD64, ARM64)}


def arch_named(name: str) -> Arch:
    """The architecture called `name`.

    Raises:
        VmError: There are no guests of it.
    """
    if name not in ARCHES:
        raise VmError(f"no guests of architecture '{name}': say {' or '.join(ARCHES)}{did_you_mean(name, ARCHES)}")
    return ARCHES[name]
