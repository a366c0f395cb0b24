"""A Linux tap interface, spoken to with virtio-net headers so that GSO frames and bare checksums travel whole.

Source: Linux Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h, drivers/net/tun.c; the header is that of
virtio 1.2, section 5.1.6. A tap gives and takes one frame per system call, so both loops are compiled: the interpreter
is entered once per batch.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pwd
import struct

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import store_u16
from nicmodel.jit.compiled import compiled
from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.wire import vnet
from nicmodel.wire.fd import FdWire
from nicmodel.wire.syscalls import read, write
from nicmodel.wire.wire import WireError

log = logging.getLogger(__name__)

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40

#: struct virtio_net_hdr_mrg_rxbuf: a virtio-net header, and num_buffers.
VNET_HEADER = vnet.VNET_HEADER + 2

_TSO = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
#: What to ask the kernel for, best first. USO came with Linux 6.2, and only in both versions of IP at once.
_OFFLOADS = (
    (_TSO | TUN_F_USO4 | TUN_F_USO6, Offload.ALL),
    (_TSO, Offload.CSUM | Offload.TSO4 | Offload.TSO6),
    (TUN_F_CSUM, Offload.CSUM),
    (0, Offload.NONE),
)

#: For whom may not make a tap: one that root makes for them can be opened without any right.
_HOW_TO_MAKE = """: only root makes taps, or opens those of others. Root makes one for you by
  ip tuntap add dev {name} mode tap user {user}
  ip link set {name} up
and gives it an address (ip addr add 192.0.2.1/24 dev {name}), or puts it into a bridge (ip link set {name} master br0).
Without root: --wire stream:PATH, with passt at the other end, or a tap in a namespace of your own (unshare -rn)"""


@compiled
def _read_frames(fd: int, data: npt.NDArray[np.uint8], frames: npt.NDArray[np.void]) -> tuple[int, int, int, int, int]:
    """Read frames until the tap has none, or the batch is full.

    Returns:
        As `FdWire._read`; a tap has nothing but frames.
    """
    base = int(np.int64(data.ctypes.data))
    used = 0
    octets = 0
    count = 0
    while count < len(frames) and used + VNET_HEADER + MAX_FRAME <= len(data):
        got = read(fd, base + used, VNET_HEADER + MAX_FRAME)
        if got < 0:
            return count, used, octets, 0, -got
        length = got - VNET_HEADER
        vnet.load_record(base + used, data, used + VNET_HEADER, length, frames[count])
        used += got
        octets += length
        count += 1
    return count, used, octets, 0, 0


@compiled
def _write_frames(
    fd: int, data: npt.NDArray[np.uint8], frames: npt.NDArray[np.void], first: int, count: int
) -> tuple[int, int, int]:
    """Write frames `first` to `count`, each with a virtio-net header put into the room before it.

    Returns:
        As `FdWire._write`.
    """
    base = int(np.int64(data.ctypes.data))
    octets = 0
    for index in range(first, count):
        frame = frames[index]
        length = int(frame["length"])
        start = int(frame["offset"])
        if start < VNET_HEADER or start + length > len(data):
            return index, octets, errno.EINVAL
        at = start - VNET_HEADER
        vnet.store_record(base + at, data, frame)
        store_u16(base + at + vnet.VNET_HEADER, 0)
        done = write(fd, base + at, VNET_HEADER + length)
        if done < 0:
            return index, octets, -done
        octets += length
    return count, octets, 0


class TapWire(FdWire):
    """A tap interface. Its link is up for as long as the interface exists.

    Args:
        name: interface to attach to; it is made if there is none, and then goes away with the wire. None: the kernel
            finds a name.
        offloads: let GSO and bare checksums through, both ways.
        fd: descriptor of a tap that somebody else has opened, perhaps in another network namespace, with IFF_TAP,
            IFF_NO_PI and IFF_VNET_HDR. It is the wire's from then on.

    Losses counted: ``interface_down``, the interface is not up; ``refused_<errno>``, the kernel did not take a frame;
    ``unreadable_<errno>``, it could not hand one over; ``not_connected``, the interface has been deleted.

    Raises:
        WireError: the tap cannot be opened, or is of another kind.
    """

    headroom = VNET_HEADER

    _read = staticmethod(_read_frames)
    _write = staticmethod(_write_frames)

    def __init__(self, name: str | None = None, *, offloads: bool = True, fd: int | None = None) -> None:
        tap = _open(name) if fd is None else fd
        try:
            self.interface = _check(tap)
            self.offloads = _negotiate(tap) if offloads else _negotiate(tap, _OFFLOADS[-1:])
            os.set_blocking(tap, False)
        except (OSError, WireError):
            if fd is None:
                os.close(tap)
            raise
        super().__init__(f"tap:{self.interface}", tap, Batch(1 << 20, 512))

    def _close(self) -> None:
        os.close(self._fd)
        self.up = False

    def _refused(self, batch: Batch, error: int) -> bool:
        if error == errno.EBADFD:  # the interface is gone; the poller says so too, and there the link goes down
            return False
        if error == errno.EIO:
            self._lose("interface_down")
            batch.sent += 1
            return True
        return super()._refused(batch, error)

    def _unreadable(self, error: int) -> None:
        if error != errno.EBADFD:
            super()._unreadable(error)
        elif not self._incoming.count:  # else it is told again, once these frames are handed on
            self._gone()

    def _gone(self) -> None:
        """The interface has been deleted; nothing brings it back to this descriptor."""
        log.error("%s: the interface has been deleted", self.name)
        self._leave()
        self.up = False
        self._link_changed()
        self._resume()


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _open(name: str | None) -> int:
    """A new descriptor, attached to the interface."""
    wanted = os.fsencode(name or "")
    if len(wanted) > 15:
        raise WireError(f"tap:{name}: an interface name has at most 15 bytes")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "is the kernel's module tun loaded?"
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "ask for rights to open it (0666 is usual), or use passt: `nicmodel demo` shows how"
        raise WireError(f"/dev/net/tun: {error.strerror}; {hint}") from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", wanted, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except OSError as error:
        os.close(fd)
        hint = {
            errno.EPERM: _HOW_TO_MAKE.format(name=name or "tap0", user=_user()),
            errno.EBUSY: "; another process has it open",
            errno.EINVAL: "; it exists and is no single-queue tap",
        }.get(error.errno or 0, "")
        raise WireError(f"tap:{name or ''}: {error.strerror}{hint}") from error
    return fd


def _check(fd: int) -> str:
    """Name of the interface that `fd` is attached to."""
    try:
        answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    except OSError as error:
        raise WireError(f"descriptor {fd} is not attached to a tap: {error.strerror}") from error
    name, flags = struct.unpack("16sH22x", answer)
    needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    if flags & needed != needed:
        raise WireError(f"descriptor {fd}: the tap has to be opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")
    return os.fsdecode(name.rstrip(b"\0"))


def _negotiate(fd: int, choices: tuple[tuple[int, Offload], ...] = _OFFLOADS) -> Offload:
    """Set the header's size and the best of `choices` that this kernel knows."""
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
    for bits, offloads in choices:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, bits)
            return offloads
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    raise WireError("the kernel takes no TUNSETOFFLOAD")
