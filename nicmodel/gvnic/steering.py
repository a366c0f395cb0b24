"""RSS and flow rules as the admin queue sets them; the packet path reads the arrays in `State`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.gvnic import commands as c
from nicmodel.gvnic.commands import RssHashType, RuleFlowType, Status
from nicmodel.gvnic.state import State
from nicmodel.packet.match import FlowType, index_rules
from nicmodel.packet.rss import HashType, toeplitz_table


class SteeringError(Exception):
    """A setting that cannot be; `status` is what the admin command gets."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


#: Key until the driver gives one; the one of Microsoft's verification suite, which many NICs start with.
DEFAULT_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")

#: Linux enables these four.
DEFAULT_HASH_TYPES = RssHashType.TCPV4 | RssHashType.TCPV6 | RssHashType.UDPV4 | RssHashType.UDPV6

#: A driver's hash types as the packet path has them.
_HASHED = {theirs: HashType[name] for name, theirs in RssHashType.__members__.items()}


class Rss:
    """Hash key, hash types and indirection table.

    Until the driver sets a table, the device spreads over the queues that exist.

    Attributes:
        key: the hash key.
        hash_types: what is hashed.
        algorithm: as the driver gave it; 0 while RSS is switched off.
        configured: whether the driver has set a table.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.key = b""
        self.reset()

    def reset(self) -> None:
        """The device's own default."""
        self.algorithm = c.RSS_HASH_TOEPLITZ
        self.set_key(DEFAULT_KEY)
        self.set_hash_types(DEFAULT_HASH_TYPES)
        self.configured = False
        self.spread(1)

    def set_key(self, key: bytes) -> None:
        """Take a new hash key."""
        if len(key) != c.RSS_KEY_SIZE:
            raise SteeringError(Status.INVALID_ARGUMENT, f"RSS key of {len(key)} bytes, not {c.RSS_KEY_SIZE}")
        if key == self.key:
            return
        self.key = key
        self._state.hash_table[:] = toeplitz_table(np.frombuffer(key, np.uint8))

    def set_hash_types(self, types: int) -> None:
        """Choose what is hashed (`RssHashType`)."""
        self.hash_types = RssHashType(types)
        self._state.device["hash_types"] = sum(ours for theirs, ours in _HASHED.items() if theirs & types)

    def switch_off(self) -> None:
        """Nothing is hashed, and all that no rule steers goes to the first queue."""
        self.algorithm = 0
        self.set_hash_types(0)
        self.set_table(np.zeros(1, np.int64))

    def set_table(self, table: NDArray[Any]) -> None:
        """Take a new indirection table of queue numbers; they may name queues that do not exist yet.

        Args:
            table: of any power of two up to `RSS_LUT_SIZE`. One that is shorter is kept repeated, which selects the
                same queues.
        """
        size = len(table)
        if not 0 < size <= c.RSS_LUT_SIZE or size & size - 1:
            raise SteeringError(
                Status.INVALID_ARGUMENT, f"RSS table of {size} entries, not a power of two up to {c.RSS_LUT_SIZE}"
            )
        if (table >= len(self._state.rx)).any():
            raise SteeringError(Status.INVALID_ARGUMENT, f"RSS table names queue {table.max()}")
        self.configured = True
        self._set(np.tile(table, c.RSS_LUT_SIZE // size))

    def spread(self, queues: int) -> None:
        """Without a table from the driver: entry i is queue i mod `queues`."""
        if not self.configured:
            self._set(np.arange(c.RSS_LUT_SIZE) % max(queues, 1))

    def _set(self, table: NDArray[Any]) -> None:
        self._state.lut[:] = table
        self._state.device["lut_size"] = len(table)

    def query(self) -> bytes:
        """What QUERY_RSS answers."""
        table = self._state.lut.astype(">u4").tobytes()
        total = c.QUERY_RSS_HEADER.itemsize + len(self.key) + len(table)
        header = np.array((total, self.hash_types, self.algorithm, 0), c.QUERY_RSS_HEADER)
        return header.tobytes() + self.key + table


_IPV6 = (FlowType.TCPV6, FlowType.UDPV6, FlowType.SCTPV6, FlowType.AHV6, FlowType.ESPV6)


def _turn(address: NDArray[Any]) -> np.ndarray:
    """An IPv6 address with its 32-bit words in the opposite order."""
    return address.reshape(4, 4)[::-1].reshape(16)


class FlowRules:
    """Installed n-tuple rules: the bytes as the driver gave them, and the form the packet path matches."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._raw: dict[int, bytes] = {}

    @property
    def capacity(self) -> int:
        """Number of locations."""
        return len(self._state.rules)

    def __len__(self) -> int:
        return len(self._raw)

    def locations(self) -> list[int]:
        """Locations in use, ascending: the order in which they are matched."""
        return sorted(self._raw)

    def add(self, location: int, raw: bytes, *, words_reversed: bool = False) -> None:
        """Install or replace the rule at `location`.

        Args:
            location: which.
            raw: a `FLOW_RULE`.
            words_reversed: IPv6 addresses have their least significant 32-bit word first. DPDK writes them so and says
                that the device wants it (drivers/net/gve/gve_flow_rule.c, gve_parse_ipv6), Linux does not.
        """
        rule = np.frombuffer(raw, c.FLOW_RULE)[0]
        if location >= self.capacity:
            raise SteeringError(Status.OUT_OF_RANGE, f"rule location {location} of {self.capacity}")
        if rule["flow_type"] not in set(RuleFlowType):
            raise SteeringError(Status.INVALID_ARGUMENT, f"flow type {rule['flow_type']}")
        if rule["queue"] >= len(self._state.rx):
            raise SteeringError(Status.INVALID_ARGUMENT, f"rule to queue {rule['queue']}")
        key, mask = rule["key"], rule["mask"]
        entry = self._state.rules[location : location + 1]
        entry[:] = 0
        entry["installed"] = 1
        flow_type = FlowType[RuleFlowType(rule["flow_type"]).name]
        entry["flow_type"] = flow_type
        entry["action"] = rule["queue"]
        turned = words_reversed and flow_type in _IPV6
        for name in ("source", "destination"):
            entry[name] = _turn(key[name]) if turned else key[name]
            entry[f"{name}_mask"] = _turn(mask[name]) if turned else mask[name]
        # The same four bytes are two ports or one SPI, by flow type.
        if flow_type in (FlowType.AHV4, FlowType.ESPV4, FlowType.AHV6, FlowType.ESPV6):
            entry["spi"] = key["ports"].view(">u4")
            entry["spi_mask"] = mask["ports"].view(">u4")
        else:
            entry["source_port"], entry["destination_port"] = key["ports"].view(">u2")
            entry["source_port_mask"], entry["destination_port_mask"] = mask["ports"].view(">u2")
        entry["owner"] = key["owner"]
        entry["tos"] = key["tos"]
        entry["tos_mask"] = mask["tos"]
        self._raw[location] = bytes(raw)
        self._index()

    def delete(self, location: int) -> None:
        """Take the rule at `location` out."""
        if self._raw.pop(location, None) is None:
            raise SteeringError(Status.NOT_FOUND, f"no rule at location {location}")
        self._state.rules[location : location + 1] = 0
        self._index()

    def reset(self) -> None:
        """Take all rules out."""
        self._raw.clear()
        self._state.rules[:] = 0
        self._index()

    def _index(self) -> None:
        state = self._state
        order = np.array(self.locations(), np.int32)
        state.device["rule_groups"] = index_rules(state.rules, order, state.rule_groups, state.rule_slots)

    def query(self, query: int, start: int, available: int) -> bytes:
        """What QUERY_FLOW_RULES answers within `available` bytes, from location `start` on.

        Linux reads before its array when a query for rules succeeds with none, hence NOT_FOUND; a query for locations
        ends with an empty success.
        """
        header = c.QUERY_FLOW_RULES_HEADER.itemsize
        entry = {c.FlowQuery.STATS: 0, c.FlowQuery.IDS: 4, c.FlowQuery.RULES: c.QUERIED_RULE.itemsize}.get(query)  # type: ignore[call-overload]
        if entry is None or available < header:
            raise SteeringError(Status.INVALID_ARGUMENT, f"flow rule query {query} into {available} bytes")
        found = [location for location in self.locations() if location >= start] if entry else []
        found = found[: (available - header) // entry] if entry else []
        if query == c.FlowQuery.IDS:
            body = np.array(found, ">u4").tobytes()
        else:
            body = b"".join(location.to_bytes(4, "big") + self._raw[location] for location in found)
            if query == c.FlowQuery.RULES and not found:
                raise SteeringError(Status.NOT_FOUND, f"no rule from location {start} on")
        counts = (len(self), self.capacity, len(found), header + len(body))
        return np.array(counts, c.QUERY_FLOW_RULES_HEADER).tobytes() + body
