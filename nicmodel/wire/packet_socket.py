"""An AF_PACKET socket on a network interface: the NIC takes its frames from there and sends there.

Virtio-net headers (PACKET_VNET_HDR) let GSO frames and bare checksums travel whole both ways, as with a tap. Source:
packet(7); Linux net/packet/af_packet.c, include/uapi/linux/if_packet.h.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import load_u16, load_u32
from nicmodel.jit.compiled import compiled
from nicmodel.nearest import did_you_mean
from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.packet.parse import ETHERTYPE_VLAN, VLAN_SIZE
from nicmodel.packet.words import load_be32, store_be16, store_be32
from nicmodel.wire.fd import FdWire
from nicmodel.wire.messages import BURST, Messages
from nicmodel.wire.syscalls import recvmmsg, sendmmsg
from nicmodel.wire.vnet import VNET_HEADER, load_record, store_record
from nicmodel.wire.wire import Poller, WireError

log = logging.getLogger(__name__)

# linux/if_packet.h, linux/if_ether.h, linux/sockios.h, linux/rtnetlink.h, asm-generic/socket.h
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6
ETH_P_ALL = 3
SIOCGIFNAME = 0x8910
SIOCGIFFLAGS = 0x8913
IFF_RUNNING = 0x40
RTMGRP_LINK = 1
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

#: Control data of a message: struct cmsghdr and struct tpacket_auxdata, the latter's size rounded up.
_CONTROL = 16 + 24
_STATUS, _TCI, _TPID = 16, 16 + 16, 16 + 18  # where in it
#: Bytes for each frame: room for a VLAN tag before it.
_SLOT = VLAN_SIZE + MAX_FRAME
_SOCKET_BUFFER = 8 << 20
_ORDINARY = {SO_SNDBUFFORCE: socket.SO_SNDBUF, SO_RCVBUFFORCE: socket.SO_RCVBUF}
_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK (linux/if_arp.h)
_MSG_TRUNC = int(socket.MSG_TRUNC)


@compiled
def _receive_frames(
    messages: npt.NDArray[np.void],
    pieces: npt.NDArray[np.void],
    headers: npt.NDArray[np.uint8],
    fd: int,
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
) -> tuple[int, int, int, int, int]:
    """Receive a frame for each slot of `_SLOT` bytes in `data`, its virtio-net header into a row of `headers`.

    The kernel takes the outer VLAN tag out of a frame and tells it beside; here it is put back.

    Returns:
        As `FdWire._read`; what is longer than a slot is no frame.
    """
    slots = len(data) // _SLOT
    base = int(np.int64(data.ctypes.data))
    header_base = int(np.int64(headers.ctypes.data))
    for slot in range(slots):
        pieces[slot, 0]["base"] = header_base + slot * VNET_HEADER
        pieces[slot, 0]["length"] = VNET_HEADER
        pieces[slot, 1]["base"] = base + slot * _SLOT + VLAN_SIZE
        pieces[slot, 1]["length"] = MAX_FRAME
        messages[slot]["control_length"] = _CONTROL
    got = recvmmsg(fd, int(np.int64(messages.ctypes.data)), slots)
    if got < 0:
        return 0, 0, 0, 0, -got
    octets = 0
    count = 0
    for slot in range(got):
        message = messages[slot]
        if message["flags"] & _MSG_TRUNC:
            continue
        frame = frames[count]
        start = slot * _SLOT + VLAN_SIZE
        load_record(header_base + slot * VNET_HEADER, data, start, int(message["received"]) - VNET_HEADER, frame)
        control = int(message["control"])
        if message["control_length"] >= _TPID + 2:
            status = int(load_u32(control + _STATUS))
            if status & TP_STATUS_VLAN_VALID:
                tpid = int(load_u16(control + _TPID)) if status & TP_STATUS_VLAN_TPID_VALID else ETHERTYPE_VLAN
                for at in range(start, start + 12, 4):  # the two addresses
                    store_be32(data, at - VLAN_SIZE, load_be32(data, at))
                store_be16(data, start + 8, tpid)
                store_be16(data, start + 10, int(load_u16(control + _TCI)))
                frame["offset"] = start - VLAN_SIZE
                frame["length"] += VLAN_SIZE
                if frame["gso"] != 0:
                    frame["header"] += VLAN_SIZE
                if frame["flags"] & 1:
                    frame["csum_start"] += VLAN_SIZE
        octets += int(frame["length"])
        count += 1
    return count, len(data), octets, got - count, 0


@compiled
def _send_frames(
    messages: npt.NDArray[np.void],
    pieces: npt.NDArray[np.void],
    headers: npt.NDArray[np.uint8],
    fd: int,
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
    first: int,
    count: int,
) -> tuple[int, int, int]:
    """Send frames `first` to `count`, each after its virtio-net header, which goes through a row of `headers`.

    Returns:
        As `FdWire._write`.
    """
    base = int(np.int64(data.ctypes.data))
    header_base = int(np.int64(headers.ctypes.data))
    octets = 0
    while first < count:
        burst = min(len(messages), count - first)
        for slot in range(burst):
            frame = frames[first + slot]
            store_record(header_base + slot * VNET_HEADER, data, frame)
            pieces[slot, 0]["base"] = header_base + slot * VNET_HEADER
            pieces[slot, 0]["length"] = VNET_HEADER
            pieces[slot, 1]["base"] = base + int(frame["offset"])
            pieces[slot, 1]["length"] = frame["length"]
        done = sendmmsg(fd, int(np.int64(messages.ctypes.data)), burst)
        if done < 0:
            return first, octets, -done
        for slot in range(done):
            octets += int(frames[first + slot]["length"])
        first += done
    return first, octets, 0


class PacketSocketWire(FdWire):
    """A network interface, tapped at its device: a veth end, a bridge, a real card in promiscuous mode.

    The kernel's own stack goes on receiving what the interface receives. Give it no address there, or both will answer.

    The link is up while the interface is up and has a carrier.

    Args:
        interface: name of an Ethernet interface.

    Losses counted: ``interface_down``, sent while it was not up; ``receive_buffer_full``, the kernel found no room in
    the socket's buffer; ``truncated``, a frame above `MAX_FRAME` (BIG TCP); ``refused_<errno>``, the kernel did not
    take a frame; ``unreadable_<errno>``, it could not hand one over.

    Raises:
        WireError: there is no such interface, it is no Ethernet, or CAP_NET_RAW is missing.
    """

    _no_frame = "truncated"
    _nobody = "interface_down"

    def __init__(self, interface: str) -> None:
        self.offloads = _offloads()
        self._socket, self._index = _open(interface)
        super().__init__(f"packet:{interface}", self._socket.fileno(), Batch(BURST * _SLOT, BURST))
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._events.bind((0, RTMGRP_LINK))
        self.up = self._running()
        self._received, self._sent = Messages(pieces=2, control=_CONTROL), Messages(pieces=2)
        received_headers, sent_headers = np.zeros((2, BURST, VNET_HEADER), np.uint8)
        self._read = partial(_receive_frames, self._received.messages, self._received.pieces, received_headers)
        self._write = partial(_send_frames, self._sent.messages, self._sent.pieces, sent_headers)

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`."""
        super().start(poller, receive, writable, link_changed)
        poller.add(self._events.fileno(), self._on_event)

    def _close(self) -> None:
        if self._poller is not None:
            self._poller.remove(self._events.fileno())
        self._events.close()
        self._socket.close()

    def _refused(self, batch: Batch, error: int) -> bool:
        if error in (errno.ENETDOWN, errno.ENXIO, errno.ENODEV):  # ahead of the event that says so
            return False
        return super()._refused(batch, error)

    def _unreadable(self, error: int) -> None:
        if error != errno.ENETDOWN:
            super()._unreadable(error)

    def _on_readable(self) -> None:
        super()._on_readable()
        if self._fd < 0:  # the receiver has stopped the wire
            return
        _, missed = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if missed:  # since it was asked before
            self._lose("receive_buffer_full", missed)

    def _on_event(self) -> None:
        """Some interface has changed; look at ours."""
        try:
            while self._events.recv(1 << 16):
                pass
        except OSError:  # no more of them, or more than were kept: what counts is how things stand now
            pass
        up = self._running()
        if up != self.up:
            self.up = up
            self._link_changed()
            if self._blocked:
                self._on_writable()

    def _running(self) -> bool:
        """Whether the interface is up and has a carrier; its name may have changed since it was opened."""
        try:
            request = fcntl.ioctl(self._socket, SIOCGIFNAME, struct.pack("16si20x", b"", self._index))
            flags = fcntl.ioctl(self._socket, SIOCGIFFLAGS, request[:16] + bytes(24))
        except OSError as error:
            log.error("%s: the interface is gone: %s", self.name, error.strerror)
            return False
        return bool(struct.unpack_from("H", flags, 16)[0] & IFF_RUNNING)


def _open(interface: str) -> tuple[socket.socket, int]:
    """A socket bound to the interface, and the interface's index."""
    try:
        # Without a protocol it hears nothing, until it is bound to the one interface.
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise WireError(f"packet:{interface}: {error.strerror}; it takes root, or the capability NET_RAW") from error
    try:
        index = _index_of(interface)
        for option in (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING):
            made.setsockopt(SOL_PACKET, option, 1)
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            try:
                made.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
            except PermissionError:  # it takes CAP_NET_ADMIN to go beyond the limit
                made.setsockopt(socket.SOL_SOCKET, _ORDINARY[option], _SOCKET_BUFFER)
        made.bind((interface, ETH_P_ALL))
        if made.getsockname()[3] not in _ETHERNET:
            raise WireError(f"packet:{interface}: this is no Ethernet interface")
        made.setsockopt(
            SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8x", index, PACKET_MR_PROMISC, 0)
        )  # fmt: skip
    except OSError as error:
        made.close()
        raise WireError(f"packet:{interface}: {error.strerror}") from error
    except WireError:
        made.close()
        raise
    return made, index


def _index_of(interface: str) -> int:
    there = {name: index for index, name in socket.if_nameindex()}
    if interface not in there:
        among = f"there are {', '.join(sorted(there))}" if there else "there is none"
        raise WireError(f"packet:{interface}: no interface {interface!r}: {among}{did_you_mean(interface, there)}")
    return there[interface]


def _offloads() -> Offload:
    """What this kernel takes from an AF_PACKET socket; UDP segmentation came with Linux 6.2."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    recent = version is not None and (int(version[1]), int(version[2])) >= (6, 2)
    return Offload.ALL if recent else Offload.ALL & ~Offload.USO
