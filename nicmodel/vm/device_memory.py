"""A device's memory in a guest (an accelerator's, say), as the host sees it: a file that is mapped here.

It comes in two kinds. Memory that is coherent with the guest's CPUs is a NUMA node without any (`device_memory` of
`GuestConfig`), where mbind(2) puts a dma-buf; memory of a PCI device is a BAR (`accelerators`), of which the module in
`guest/module` makes dma-bufs. What a NIC writes there by DMA a program here sees without a copy, and the other way.
"""

import importlib
import mmap
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nicmodel.installation import pip_install
from nicmodel.vm.errors import VmError


class DeviceMemory:
    """Memory of a guest's device.

    Args:
        fd: The file behind it, which QEMU maps too; it is closed with this object.

    Attributes:
        size: Bytes.
        array: The memory itself, shape (size,), not a copy.
        node: The guest's number for the NUMA node; -1 if it is none.
        device: The guest's device file that makes dma-bufs of it; empty if it is no BAR, or not booted yet.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(fd, self.size), np.uint8)
        self.node = -1
        self.device = ""

    @classmethod
    def create(cls, name: str, size: int) -> Self:
        """New memory of `size` bytes, zero. A NIC's server calls it by this name: it is that of a memfd."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, size)
        return cls(fd)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The memory of a guest that somebody else has started: the file of QEMU's memory backend.

        Raises:
            OSError: There is no such file, or it may not be written.
        """
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    @property
    def path(self) -> str:
        """The path by which another process finds the memory, as long as this object is open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def options(self) -> str:
        """Options of devmem_receiver and devmem_sender that take a dma-buf from it."""
        return f"--device {self.device}" if self.device else f"--node {self.node}"

    def view(self, dtype: DTypeLike, offset: int = 0, count: int = -1) -> NDArray[Any]:
        """A part of the memory as numbers, not a copy.

        Args:
            dtype: What they are, e.g. "<f4".
            offset: Bytes before the first.
            count: How many; as many as there is room for if -1.

        Raises:
            ValueError: The memory ends before.
        """
        if count < 0:
            count = (self.size - offset) // np.dtype(dtype).itemsize
        return np.frombuffer(self.array, dtype, count, offset)

    def tensor(self) -> Any:
        """The memory as a PyTorch tensor, dtype uint8, shape (size,), not a copy; `view(dtype)` makes numbers of it.

        Raises:
            VmError: There is no PyTorch.
        """
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            raise VmError(f"PyTorch is not installed here: {pip_install('torch')}, or use the array") from None
        return torch.from_numpy(self.array)

    def close(self) -> None:
        """Close the file; `array` stays valid."""
        os.close(self.fd)
