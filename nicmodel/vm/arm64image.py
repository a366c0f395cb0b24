"""An arm64 kernel image: its release, and its configuration where that was built in.

The header is Linux' boot protocol (Documentation/arch/arm64/booting.rst). It does not name the release; the kernel's
own greeting does (init/version.c, linux_banner).
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from nicmodel.vm.arch import ARM64, Arch
from nicmodel.vm.bzimage import FormatError, decompress, find_configuration, read_content
from nicmodel.vm.errors import VmError

_MAGIC = (0x38, b"ARM\x64")
_GZIP = b"\x1f\x8b"
_BANNER = re.compile(rb"Linux version (\S{1,64}) \(")


@dataclass(frozen=True)
class Arm64Image:
    """A kernel image for arm64, as `make Image` and `make Image.gz` build it, both of which QEMU boots.

    Attributes:
        content: The file's content.
        kernel: The kernel, not compressed.
        release: As `uname -r` prints it.
    """

    content: bytes
    kernel: bytes
    release: str

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return ARM64

    @classmethod
    def read(cls, path: Path) -> "Arm64Image | None":
        """Read a file; None if it is something else.

        Raises:
            VmError: It cannot be read, or it is an image that does not tell its release.
        """
        content = kernel = read_content(path)
        if content.startswith(_GZIP):
            with contextlib.suppress(FormatError):
                kernel = decompress(content)
        at, magic = _MAGIC
        if kernel[at : at + len(magic)] != magic:
            return None
        if not (banner := _BANNER.search(kernel)):
            raise VmError(f"{path} does not tell its kernel's release: it is broken, or no Linux")
        return cls(content, kernel, banner[1].decode("ascii", "replace"))

    def configuration(self) -> str | None:
        """The text of the .config that it was built with; None if it was built without CONFIG_IKCONFIG."""
        return find_configuration(self.kernel)
