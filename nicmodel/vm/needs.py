"""What a kernel must be configured with to be a guest's, said by the options' names, before it boots.

A kernel without one of these boots to a panic or to silence, from which nobody can tell what was missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nicmodel.vm.arch import AMD64, ARM64, Arch
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import Kernel


@dataclass(frozen=True)
class Need:
    """An option that a kernel has to have.

    Attributes:
        option: Its name, without CONFIG_.
        purpose: What it is for.
        module: The module that it makes, where it may be one.
    """

    option: str
    purpose: str
    module: str = ""


GUEST = (
    Need("64BIT", "its programs are 64-bit"),
    Need("PRINTK", "messages"),
    Need("BLK_DEV_INITRD", "the initramfs, which is its root file system"),
    Need("BINFMT_ELF", "programs"),
    Need("BINFMT_SCRIPT", "/init is a script"),
    Need("PROC_FS", "/proc"),
    Need("SYSFS", "/sys"),
    Need("DEVTMPFS", "/dev"),
    Need("TMPFS", "/run and /tmp"),
    Need("UNIX98_PTYS", "a shell's terminal"),
    Need("FUTEX", "programs of several threads"),
    Need("EPOLL", "the agent waits by it"),
    Need("POSIX_TIMERS", "the agent, and the clock"),
    Need("PCI", "devices"),
    Need("PCI_MSI", "the NIC's interrupts"),
    Need("VIRTIO_PCI", "the agent's port", "virtio_pci"),
    Need("VIRTIO_CONSOLE", "the agent's port", "virtio_console"),
    Need("INET", "the network"),
)
"""What every guest needs: to start /init, and to reach its agent."""

MACHINE: Mapping[Arch, Sequence[Need]] = {
    AMD64: (
        Need("SERIAL_8250_CONSOLE", "the kernel's messages go there"),
        Need("ACPI", "devices, and switching off"),
    ),
    # QEMU describes the machine by a device tree, since no firmware is in between.
    ARM64: (
        Need("SERIAL_AMBA_PL011_CONSOLE", "the kernel's messages go there"),
        Need("PCI_HOST_GENERIC", "devices"),
    ),
}
"""What the machines of an architecture need besides."""

GVE = Need("GVE", "the driver of a gVNIC", "gve")
IDPF = Need("IDPF", "the driver of an idpf", "idpf")

DRIVERS: Mapping[tuple[int, int], Need] = {(0x1AE0, 0x0042): GVE, (0x8086, 0x145C): IDPF}
"""The stock driver of each NIC by its PCI IDs. Without it the guest has a PCI device and no interface."""

SHARE = (Need("VIRTIO_FS", "folders of the host's", "virtiofs"),)
"""What a guest with shared folders needs."""

NODE = (Need("NUMA", "devices' memory as nodes"),)
"""What a guest with devices' memory as NUMA nodes needs."""

DEVMEM = (
    Need("NET_DEVMEM", "devmem TCP; it comes with DMA_SHARED_BUFFER, GENERIC_ALLOCATOR and PAGE_POOL"),
    Need("UDMABUF", "dma-bufs of memory", "udmabuf"),
)
"""What devmem TCP needs."""


def lacking(kernel: Kernel, needs: Sequence[Need]) -> list[str]:
    """What of `needs` a kernel is without, in words; what cannot be told counts as there."""
    return [words for need in needs if (words := _lack(kernel, need))]


def driverless(kernel: Kernel, ids: Iterable[tuple[int, int]]) -> list[str]:
    """What a kernel is without of the drivers of NICs with these PCI IDs (`lacking`); other devices do not count."""
    return lacking(kernel, [DRIVERS[one] for one in dict.fromkeys(ids) if one in DRIVERS])


def _lack(kernel: Kernel, need: Need) -> str:
    if need.module and (need.module in kernel.modules or need.module in kernel.built_in):
        return ""
    if kernel.config is None:
        unknown = not need.module or not kernel.indexes
        return "" if unknown else f"CONFIG_{need.option} ({need.purpose})"
    value = kernel.config.get(need.option, "n")
    if value == "m":
        return f"the module {need.module} ({need.purpose}; {kernel.advice})"
    return f"CONFIG_{need.option} ({need.purpose})" if value == "n" else ""


def require(kernel: Kernel, needs: Sequence[Need]) -> None:
    """Go on only if a kernel has what is needed.

    Raises:
        VmError: It has not; the message names the options.
    """
    if missing := lacking(kernel, needs):
        raise VmError(
            f"the kernel {kernel.name} (Linux {kernel.release}) lacks what a guest needs: {', '.join(missing)}"
        )


def unknown(kernel: Kernel) -> str:
    """What to say of a kernel whose configuration nothing tells, if it does not boot."""
    options = ", ".join(f"CONFIG_{need.option}" for need in (*GUEST, *MACHINE[kernel.arch]))
    return f"how Linux {kernel.release} was configured is not known; a guest needs {options}"
