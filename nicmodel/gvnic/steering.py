"""RSS and flow rules as gVNIC's admin commands say them; what they set is any NIC's (`nicmodel.nic.steering`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.commands import RssHashType, RuleFlowType, Status
from nicmodel.gvnic.refusal import AdminError, require
from nicmodel.nic import steering
from nicmodel.nic.state import State
from nicmodel.nic.steering import NoSuchLocationError, NoSuchRuleError, SteeringError
from nicmodel.packet.match import RULE, FlowType
from nicmodel.packet.rss import HashType

#: Linux enables these four.
_DEFAULT_HASH_TYPES = HashType.TCPV4 | HashType.TCPV6 | HashType.UDPV4 | HashType.UDPV6

#: A driver's hash types, and those of the packet path.
_HASHED = {theirs: HashType[name] for name, theirs in RssHashType.__members__.items()}


def status_of(error: SteeringError) -> Status:
    """What an admin command gets that asked for what cannot be."""
    if isinstance(error, NoSuchLocationError):
        return Status.OUT_OF_RANGE
    return Status.NOT_FOUND if isinstance(error, NoSuchRuleError) else Status.INVALID_ARGUMENT


class Rss(steering.Rss):
    """RSS, with an algorithm, and a table of `RSS_LUT_SIZE` entries.

    Attributes:
        algorithm: as the driver gave it; 0 while RSS is switched off.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state, _DEFAULT_HASH_TYPES)

    def reset(self) -> None:
        """The device's own default."""
        self.algorithm = c.RSS_HASH_TOEPLITZ
        super().reset()

    def switch_off(self) -> None:
        """Nothing is hashed, and all that no rule steers goes to the first queue."""
        self.algorithm = 0
        super().switch_off()

    def set_types(self, types: int) -> None:
        """Choose what is hashed (`RssHashType`)."""
        self.set_hash_types(HashType(sum(ours for theirs, ours in _HASHED.items() if theirs & types)))

    def set_table(self, table: NDArray[Any]) -> None:
        """Take a new indirection table of queue numbers; they may name queues that do not exist yet.

        Args:
            table: of any power of two up to `RSS_LUT_SIZE`. One that is shorter is kept repeated, which selects the
                same queues.
        """
        size = len(table)
        power = 0 < size <= c.RSS_LUT_SIZE and size & size - 1 == 0
        require(
            power, Status.INVALID_ARGUMENT, f"RSS table of {size} entries, not a power of two up to {c.RSS_LUT_SIZE}"
        )
        super().set_table(np.tile(table, c.RSS_LUT_SIZE // size))

    @property
    def types(self) -> RssHashType:
        """What is hashed, as the driver says it."""
        return RssHashType(sum(theirs for theirs, ours in _HASHED.items() if ours & self.hash_types))

    def query(self) -> bytes:
        """What QUERY_RSS answers."""
        table = self.table.astype(">u4").tobytes()
        total = c.QUERY_RSS_HEADER.itemsize + len(self.key) + len(table)
        header = np.array((total, self.types, self.algorithm, 0), c.QUERY_RSS_HEADER)
        return header.tobytes() + self.key + table


_IPV6 = (FlowType.TCPV6, FlowType.UDPV6, FlowType.SCTPV6, FlowType.AHV6, FlowType.ESPV6)
_SPI = (FlowType.AHV4, FlowType.ESPV4, FlowType.AHV6, FlowType.ESPV6)


def _turn(address: NDArray[Any]) -> NDArray[Any]:
    """An IPv6 address with its 32-bit words in the opposite order."""
    return address.reshape(4, 4)[::-1].reshape(16)


def translate(theirs: np.void, words_reversed: bool) -> NDArray[Any]:
    """A driver's `FLOW_RULE` as the packet path matches it: a `RULE`, shape (1,).

    Args:
        theirs: the rule.
        words_reversed: IPv6 addresses have their least significant 32-bit word first. DPDK writes them so and says that
            the device wants it (drivers/net/gve/gve_flow_rule.c, gve_parse_ipv6), Linux does not.
    """
    key, mask = theirs["key"], theirs["mask"]
    flow_type = FlowType[RuleFlowType(theirs["flow_type"]).name]
    rule = np.zeros(1, RULE)
    rule["flow_type"] = flow_type
    rule["action"] = theirs["queue"]
    turned = words_reversed and flow_type in _IPV6
    for name in ("source", "destination"):
        rule[name] = _turn(key[name]) if turned else key[name]
        rule[f"{name}_mask"] = _turn(mask[name]) if turned else mask[name]
    # The same four bytes are two ports or one SPI, by flow type.
    if flow_type in _SPI:
        rule["spi"] = key["ports"].view(">u4")
        rule["spi_mask"] = mask["ports"].view(">u4")
    else:
        rule["source_port"], rule["destination_port"] = key["ports"].view(">u2")
        rule["source_port_mask"], rule["destination_port_mask"] = mask["ports"].view(">u2")
    rule["tos"] = key["tos"]
    rule["tos_mask"] = mask["tos"]
    rule["label"] = key["owner"]
    return rule


class FlowRules(steering.FlowRules):
    """Flow rules, and their bytes as the driver gave them: it may want them back.

    Bytes of rules that are gone stay until there is another, and nobody looks at them.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._raw: dict[int, bytes] = {}

    def install(self, location: int, raw: bytes, *, words_reversed: bool = False) -> None:
        """Install or replace the rule at `location`.

        Args:
            location: which.
            raw: a `FLOW_RULE`.
            words_reversed: see `translate`.
        """
        theirs = np.frombuffer(raw, c.FLOW_RULE)[0]
        self.check(location, int(theirs["queue"]))
        known = int(theirs["flow_type"]) in set(RuleFlowType)
        require(known, Status.INVALID_ARGUMENT, f"flow type {theirs['flow_type']}")
        self.add(location, translate(theirs, words_reversed))
        self._raw[location] = bytes(raw)

    def query(self, query: int, start: int, available: int) -> bytes:
        """What QUERY_FLOW_RULES answers within `available` bytes, from location `start` on.

        Linux reads before its array when a query for rules succeeds with none, hence NOT_FOUND; a query for locations
        ends with an empty success.
        """
        header = c.QUERY_FLOW_RULES_HEADER.itemsize
        entry = {c.FlowQuery.STATS: 0, c.FlowQuery.IDS: 4, c.FlowQuery.RULES: c.QUERIED_RULE.itemsize}.get(query)  # type: ignore[call-overload]
        if entry is None or available < header:
            raise AdminError(Status.INVALID_ARGUMENT, f"flow rule query {query} into {available} bytes")
        found = [location for location in self.locations() if location >= start] if entry else []
        found = found[: (available - header) // entry] if entry else []
        if query == c.FlowQuery.IDS:
            body = np.array(found, ">u4").tobytes()
        else:
            body = b"".join(location.to_bytes(4, "big") + self._raw[location] for location in found)
            if query == c.FlowQuery.RULES and not found:
                raise AdminError(Status.NOT_FOUND, f"no rule from location {start} on")
        counts = (len(self), self.capacity, len(found), header + len(body))
        return np.array(counts, c.QUERY_FLOW_RULES_HEADER).tobytes() + body
