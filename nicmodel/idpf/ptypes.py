"""Packet types as GET_PTYPE_INFO tells them: what the number in a receive completion stands for."""

from __future__ import annotations

import numpy as np

from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.virtchnl import Protocol
from nicmodel.packet.headers import L3, L4

_L4 = {L4.TCP: Protocol.TCP, L4.UDP: Protocol.UDP, L4.ICMP: Protocol.ICMP}


def _protocols(l3: L3, l4: L4) -> list[Protocol]:
    """The headers of a packet, outermost first. Linux hashes only what ends with a payload (idpf_rx_hash)."""
    network = [Protocol[l3.name]] if l3 in (L3.IPV4, L3.IPV6) else []
    transport = [_L4[l4]] if network and l4 in _L4 else []
    return [Protocol.MAC, *network, *transport, Protocol.PAYLOAD]


#: By number, ``l3 << 3 | l4`` (`nicmodel.nic.receive.ptype`), their headers.
PTYPES = {l3 << 3 | l4: _protocols(l3, l4) for l3 in L3 for l4 in L4}


def answer(start: int, count: int) -> bytes:
    """What GET_PTYPE_INFO answers that asks for `count` types from number `start` on.

    Linux asks for more until it is told the end, DPDK never looks for it and would take its number for one
    (idpf_vchnl.c): it is told to have no protocols.
    """
    wanted = [number for number in sorted(PTYPES) if start <= number < start + count]
    body = b"".join(_entry(number, PTYPES[number]) for number in wanted)
    ended = start + count > max(PTYPES)
    if ended:
        body += _entry(v.LAST_PTYPE, [])
    return np.array((start, len(wanted) + ended, 0), v.GET_PTYPE_INFO).tobytes() + body


def _entry(number: int, protocols: list[Protocol]) -> bytes:
    head = np.array((number, number & 0xFF, len(protocols), 0), v.PTYPE)
    return head.tobytes() + np.array(protocols, "<u2").tobytes()
