"""An x86 kernel image: its release, and its configuration where that was built in.

The header is Linux' boot protocol (Documentation/arch/x86/boot.rst). A configuration is in the kernel itself with
CONFIG_IKCONFIG; it is found as the kernel's scripts/extract-ikconfig does: decompress the kernel, look for a marker,
decompress what follows.
"""

import bz2
import contextlib
import lzma
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicmodel.vm.arch import AMD64, Arch
from nicmodel.vm.errors import VmError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Longer than any release (struct utsname has 65 bytes) with compiler and date behind it.
_LONGEST_BANNER = 512
_IKCONFIG = b"IKCFG_ST"

# Offsets in the image, by the names of boot.rst.
_SETUP_SECTS = 0x1F1
_HEADER = (0x202, b"HdrS")
_VERSION = 0x206
_KERNEL_VERSION = 0x20E
_LOADFLAGS = 0x211
_XLOADFLAGS = 0x236
_PAYLOAD = 0x248  # offset and length
_HEADER_END = 0x250

_LOADED_HIGH = 1 << 0
_XLF_KERNEL_64 = 1 << 0

#: What other files begin with, or have at an offset: what people take for a kernel image by mistake.
_OTHERS = (
    (0x38, b"RSC\x05", "an image for RISC-V"),
    (0x04, b"zimg", "an image for another architecture (EFI zboot)"),
    (0x00, b"\x7fELF", "an ELF file, such as vmlinux"),
    (0x00, b"MZ", "an EFI program that is no Linux image, such as a unified kernel image"),
    (0x00, b"\x1f\x8b", "compressed by gzip"),
)

_DECOMPRESSORS: Mapping[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\0\0": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
    b"\x28\xb5\x2f\xfd": zstd.ZstdDecompressor,
}
"""By what the data begins with. The kernel may be compressed by LZ4 and LZO, too; Python is without them."""


class FormatError(Exception):
    """Data that is in no format that is known here."""


def decompress(data: bytes) -> bytes:
    """The first stream of compressed `data`, whatever comes after it.

    Raises:
        FormatError: It is compressed by none of gzip, xz, lzma, bzip2 and zstd, or it is broken.
    """
    for magic, make in _DECOMPRESSORS.items():
        if data.startswith(magic):
            try:
                return bytes(make().decompress(data))
            except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError) as error:
                raise FormatError(str(error)) from error
    raise FormatError(f"unknown format {data[:6].hex()}")


def read_content(path: Path) -> bytes:
    """The content of a kernel's file.

    Raises:
        VmError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise VmError(
            f"the kernel {path} cannot be read: {error.strerror}. Have a copy made that you may read"
        ) from error


def find_configuration(kernel: bytes) -> str | None:
    """The text of the .config in a kernel that is not compressed; None if there is none."""
    _, found, after = kernel.partition(_IKCONFIG)
    if found:
        with contextlib.suppress(FormatError):
            return decompress(after).decode("utf-8", "replace")
    return None


@dataclass(frozen=True)
class BzImage:
    """A kernel image for 64-bit x86.

    Attributes:
        content: The file's content.
        release: As `uname -r` prints it.
    """

    content: bytes
    release: str

    @property
    def arch(self) -> Arch:
        """The architecture."""
        return AMD64

    @classmethod
    def read(cls, path: Path) -> "BzImage":
        """Read a file.

        Raises:
            VmError: It is no such image; the message says what it is, where that can be told.
        """
        content = read_content(path)
        at, magic = _HEADER
        if content[at : at + 4] != magic or len(content) < _HEADER_END:
            found = next((what for start, mark, what in _OTHERS if content.startswith(mark, start)), "")
            raise VmError(
                f"{path} is no kernel image for x86 or arm64{found and f', but {found}'}: "
                "give a vmlinuz, arch/x86/boot/bzImage or arch/arm64/boot/Image, or the folder in which the kernel was"
                " built"
            )
        version, banner = (struct.unpack_from("<H", content, at)[0] for at in (_VERSION, _KERNEL_VERSION))
        if not content[_LOADFLAGS] & _LOADED_HIGH or version < 0x20C or not content[_XLOADFLAGS] & _XLF_KERNEL_64:
            raise VmError(f"{path} is a kernel image for 32-bit x86: the guest's programs are 64-bit")
        text = content[0x200 + banner :][:_LONGEST_BANNER].partition(b"\0")[0].decode("ascii", "replace")
        if not banner or not text or not text.isprintable():
            raise VmError(f"{path} does not tell its kernel's release: it is broken, or no Linux")
        return cls(content, text.split()[0])

    def configuration(self) -> str | None:
        """The text of the .config that it was built with; None if it was built without CONFIG_IKCONFIG.

        Also None where the kernel is compressed in a way that Python has no library for.
        """
        setup_sectors = self.content[_SETUP_SECTS] or 4
        offset, length = struct.unpack_from("<II", self.content, _PAYLOAD)
        start = (setup_sectors + 1) * 512 + offset
        with contextlib.suppress(FormatError):
            return find_configuration(decompress(self.content[start : start + length]))
        return None
