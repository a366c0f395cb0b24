"""Flow rules as ``ethtool -N`` states them, and as the device takes them.

    TCPv4(dst="192.0.2.1", dst_port=5201)
    UDPv6(src="2001:db8::/32", src_port=(0x1000, 0xf000))
    ESPv4(spi=7)

What is left out matches anything. Addresses may be networks; ports, SPI and TOS may be a pair of value and mask.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from nicmodel.gvnic.commands import FLOW_RULE, FLOW_SPEC, RuleFlowType

#: A number that must be matched, all bits of it or those of a mask.
Masked = int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """What a rule matches: source and destination address, type of service (IPv6: traffic class)."""

    flow_type: ClassVar[RuleFlowType]

    src: str | None = None
    dst: str | None = None
    tos: Masked | None = None

    def encode(self, queue: int, owner: int = 0) -> np.void:
        """The rule (`FLOW_RULE`) that sends what matches to receive queue `queue`, to buffers of `owner`.

        Raises:
            ValueError: an address is of the other IP version, or a number does not fit.
        """
        key, mask = bytearray(FLOW_SPEC.itemsize), bytearray(FLOW_SPEC.itemsize)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                start, size = _PLACES[field.name]
                number, bits = self._address(value) if isinstance(value, str) else _number(value, size)
                key[start : start + len(number)] = number
                mask[start : start + len(bits)] = bits
        rule = np.zeros(1, FLOW_RULE)
        rule["flow_type"] = self.flow_type
        rule["queue"] = queue
        rule["key"] = np.frombuffer(key, FLOW_SPEC)[0]
        rule["key"]["owner"] = owner
        rule["mask"] = np.frombuffer(mask, FLOW_SPEC)[0]
        return rule[0]  # type: ignore[no-any-return]

    def _address(self, text: str) -> tuple[bytes, bytes]:
        network = ipaddress.ip_network(text, strict=False)
        if (network.version == 6) != (self.flow_type >= RuleFlowType.TCPV6):
            raise ValueError(f"{text} in a rule for {self.flow_type.name}")
        return ipaddress.ip_address(text.partition("/")[0]).packed, network.netmask.packed


@dataclass(frozen=True, kw_only=True)
class _WithPorts(FlowSpec):
    src_port: Masked | None = None
    dst_port: Masked | None = None


@dataclass(frozen=True, kw_only=True)
class _WithSpi(FlowSpec):
    spi: Masked | None = None


class TCPv4(_WithPorts):
    """TCP over IPv4."""

    flow_type = RuleFlowType.TCPV4


class UDPv4(_WithPorts):
    """UDP over IPv4."""

    flow_type = RuleFlowType.UDPV4


class SCTPv4(_WithPorts):
    """SCTP over IPv4."""

    flow_type = RuleFlowType.SCTPV4


class AHv4(_WithSpi):
    """IPsec authentication header over IPv4."""

    flow_type = RuleFlowType.AHV4


class ESPv4(_WithSpi):
    """IPsec encapsulating security payload over IPv4."""

    flow_type = RuleFlowType.ESPV4


class TCPv6(_WithPorts):
    """TCP over IPv6."""

    flow_type = RuleFlowType.TCPV6


class UDPv6(_WithPorts):
    """UDP over IPv6."""

    flow_type = RuleFlowType.UDPV6


class SCTPv6(_WithPorts):
    """SCTP over IPv6."""

    flow_type = RuleFlowType.SCTPV6


class AHv6(_WithSpi):
    """IPsec authentication header over IPv6."""

    flow_type = RuleFlowType.AHV6


class ESPv6(_WithSpi):
    """IPsec encapsulating security payload over IPv6."""

    flow_type = RuleFlowType.ESPV6


def _offset(member: str) -> int:
    assert FLOW_SPEC.fields is not None
    return FLOW_SPEC.fields[member][1]


#: Where in `FLOW_SPEC`, and how many bytes.
_PLACES = {
    "src": (_offset("source"), 16),
    "dst": (_offset("destination"), 16),
    "src_port": (_offset("ports"), 2),
    "dst_port": (_offset("ports") + 2, 2),
    "spi": (_offset("ports"), 4),
    "tos": (_offset("tos"), 1),
}


def _number(value: Any, size: int) -> tuple[bytes, bytes]:
    number, mask = value if isinstance(value, tuple) else (value, (1 << 8 * size) - 1)
    try:
        return int(number).to_bytes(size, "big"), int(mask).to_bytes(size, "big")
    except OverflowError as error:
        raise ValueError(f"{value} does not fit {size} bytes") from error
