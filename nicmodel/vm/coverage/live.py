"""The file that QEMU's plugin (`plugin.c`) and the host share while a guest runs: which blocks of code there are, how
often each was entered.

The plugin's counters only ever go up. To begin anew, the host notes where they stand, beside them in the file: so a
block that runs at that moment is either before it or after it, and whoever reads the file, now or when the guest is
dead, sees the same.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm.errors import VmError

#: plugin.c has the same.
MAGIC = b"nicmodel coverage live 1\n"
CODE = 32
_HEADER = np.dtype(
    [
        ("magic", "S32"),
        ("low", "<u8"),
        ("high", "<u8"),
        ("vcpus", "<u8"),
        ("slots", "<u8"),
        ("blocks_at", "<u8"),
        ("counters_at", "<u8"),
        ("size", "<u8"),
        ("used", "<u8"),
        ("lost", "<u8"),
    ]
)
BLOCK = np.dtype([("address", "<u8"), ("size", "<u8"), ("code", "u1", CODE)])

#: Where Linux puts modules on x86-64: from the end of the kernel's own 1 GiB, which it has with KASLR compiled in, to
#: the fixed maps (Linux, Documentation/arch/x86/x86_64/mm.rst; arch/x86/include/asm/pgtable_64_types.h).
MODULES = (0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FF00_0000)
#: How many blocks are told apart. gve has about 5,000, and as many again each time it is loaded elsewhere.
SLOTS = 1 << 17

_PAGE = 4096
#: The host's own words follow the header: their length, then JSON.
_ABOUT_AT, _ABOUT = 1024, struct.Struct("<I")


@dataclass(frozen=True)
class Counts:
    """What has run.

    Attributes:
        blocks: `BLOCK`, one for each block that QEMU has translated so far, in the order in which they came.
        entered: how often each was entered since `LiveFile.take`; int64, as long as `blocks`.
        lost: how many translations found no slot; what they translated is not in `blocks`.
    """

    blocks: NDArray[Any]
    entered: NDArray[np.int64]
    lost: int


class LiveFile:
    """The file, mapped. Close it, or use it as a context manager.

    Attributes:
        path: where it is.
        about: what the host has said of it when it made it.
    """

    def __init__(self, path: Path) -> None:
        """Map the file at `path`.

        Raises:
            VmError: it is none, or of another version.
        """
        self.path = path
        try:
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise VmError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        self._header = np.frombuffer(self._map, _HEADER, 1) if len(self._map) >= _PAGE else None
        if self._header is None or not self._sound():
            self.close()
            raise VmError(f"{path} is no coverage of a running guest, or of another version of nicmodel, or damaged")

    def _sound(self) -> bool:
        """Whether the header can be believed."""
        assert self._header is not None
        header = {name: int(self._header[name][0]) for name in _HEADER.names or () if name != "magic"}
        wanted = _layout(header["vcpus"], header["slots"])
        if self._header["magic"][0] != MAGIC or header["used"] > header["slots"] or header["size"] != len(self._map):
            return False
        if any(header[name] != value for name, value in wanted.items()):
            return False
        (length,) = _ABOUT.unpack_from(self._map, _ABOUT_AT)
        try:
            self.about: dict[str, Any] = json.loads(self._map[_ABOUT_AT + _ABOUT.size :][:length])
        except ValueError:
            return False
        slots, vcpus = header["slots"], header["vcpus"]
        self._blocks = np.frombuffer(self._map, BLOCK, slots, wanted["blocks_at"])
        counters = np.frombuffer(self._map, np.int64, (vcpus + 1) * slots, wanted["counters_at"])
        self._counters, self._before = counters[:-slots].reshape(vcpus, slots), counters[-slots:]
        return True

    @classmethod
    def create(cls, path: Path, vcpus: int, about: Mapping[str, object], slots: int = SLOTS) -> Self:
        """Make the file, in place of one that is there. It takes disk space only for blocks that run.

        Args:
            path: where.
            vcpus: how many the guest may have.
            about: what whoever reads it is to know, at most 3 kB as JSON.
            slots: for how many blocks there is room.
        """
        content = json.dumps(about).encode()
        if len(content) > _PAGE - _ABOUT_AT - _ABOUT.size:
            raise VmError(f"what is to be said of {path} is too long: {content[:200]!r}")
        layout = _layout(vcpus, slots)
        header = np.zeros(1, _HEADER)
        for name, value in {**layout, "magic": MAGIC, "vcpus": vcpus, "slots": slots}.items():
            header[name] = value
        header["low"], header["high"] = MODULES
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(header.tobytes())
                file.seek(_ABOUT_AT)
                file.write(_ABOUT.pack(len(content)) + content)
                file.truncate(layout["size"])
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the map; the file stays."""
        self._header = self._blocks = self._counters = self._before = None  # type: ignore[assignment]
        self._map.close()

    def read(self) -> Counts:
        """What has run up to now. The guest may run on."""
        assert self._header is not None
        used = int(self._header["used"][0])
        return Counts(self._blocks[:used].copy(), self.entered()[:used], int(self._header["lost"][0]))

    def entered(self) -> NDArray[np.int64]:
        """As `read().entered`, in a few microseconds."""
        assert self._header is not None
        used = int(self._header["used"][0])
        entered: NDArray[np.int64] = self._counters[:, :used].sum(axis=0) - self._before[:used]
        return entered

    def take(self) -> NDArray[np.int64]:
        """How often each block was entered, as `Counts.entered`; from now on none was. Nothing is lost in between."""
        assert self._header is not None
        used = int(self._header["used"][0])
        now = self._counters[:, :used].sum(axis=0)
        entered: NDArray[np.int64] = now - self._before[:used]
        self._before[:used] = now
        return entered


def is_live(path: Path) -> bool:
    """Whether a file begins as one of these does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _layout(vcpus: int, slots: int) -> dict[str, int]:
    """Where everything is: blocks, then counters of each vCPU, then where they stood at the beginning."""
    blocks_at = _PAGE
    counters_at = blocks_at + -(-slots * BLOCK.itemsize // _PAGE) * _PAGE
    return {
        "blocks_at": blocks_at,
        "counters_at": counters_at,
        "size": counters_at + (vcpus + 1) * slots * 8,
    }
